"""Makes docs/families.md from the comparison with transformers itself.

    python tests/parity/family_table.py --write      (`make docs` calls it)

`test_family_table.py` holds the page to what this makes, but for the differences, which are measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_families import TOLERANCE, controls, ids_of, packed_logits, paged_logits, reference_logits
from transformers import AutoModelForCausalLM

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.registry import FAMILIES
from support import tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"

LENGTH = 49

MODELS = {
    "llama": "Llama 2 and 3.x, SmolLM2, R1-Distill-Llama",
    "mistral": "Mistral 7B and its descendants",
    "mixtral": "Mixtral 8x7B, 8x22B",
    "qwen2": "Qwen 2 and 2.5, R1-Distill-Qwen",
    "qwen3": "Qwen 3 (dense)",
    "qwen3_moe": "Qwen 3 (30B-A3B, 235B-A22B)",
    "deepseek_v2": "DeepSeek-V2, V2-Lite",
    "deepseek_v3": "DeepSeek-V3, DeepSeek-R1",
    "gemma3_text": "Gemma 3 (270M, 1B: the text models)",
    "phi3": "Phi 3 and 3.5 mini, Phi 4, Phi 4 mini",
    "olmo2": "OLMo 2",
    "granite": "Granite 3.x (dense)",
    "smollm3": "SmolLM 3",
    "glm4": "GLM 4 (0414)",
}

HEAD = """# Families

Made by `tests/parity/family_table.py` from the comparison that the tests make; don't edit.

Each family is compared with transformers {version} in fp32 on tiny models with random weights, scaled so that attention
is far from uniform and logits have a standard deviation of at least 1. "Worst" is the largest absolute difference of a
logit over a sequence of 49 tokens: whole prefill (`Packed`), and paged decode token by token over scattered blocks.
The tests accept {tolerance}. "Controls" are mutilations that must differ by more than 100 times that. The tests compare
also other lengths, odd chunks, shared prefixes, the gradients of every weight, and the way back (our files, loaded by
transformers). Published checkpoints of these families have not been run by the tests, SmolLM2 excepted.

| `model_type` | models | tiny variants | worst, prefill | worst, decode | controls | GGUF |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What was found for one family."""

    family: str
    variants: tuple[str, ...]
    prefill: float
    decode: float
    controls: tuple[str, ...]

    def cells(self) -> list[str]:
        """The row's cells, measured ones as "1.2e-05"."""
        gguf = "yes" if FAMILIES.load(self.family).from_gguf is not None else "no"
        measured = [f"{self.prefill:.1e}", f"{self.decode:.1e}"]
        return [
            f"`{self.family}`",
            MODELS[self.family],
            ", ".join(self.variants),
            *measured,
            ", ".join(self.controls),
            gguf,
        ]


@torch.no_grad()
def compare(folder: Path) -> list[Row]:
    """One row per family, over its tiny variants."""
    rows = {}
    for name in tiny.FAMILIES:
        path = tiny.save(name, folder)
        reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        decoder = load_decoder(path, DeepSeekConfig(), pack=True)
        ids = ids_of(LENGTH)
        want = reference_logits(reference, ids)
        prefill = float((packed_logits(decoder, ids) - want).abs().max())
        decode = float((paged_logits(decoder, ids, [1] * LENGTH) - want).abs().max())
        family = decoder.config.family
        words = tuple(control.__name__.replace("_", " ") for control in controls(decoder))
        before = rows.get(family, Row(family, (), 0.0, 0.0, ("shift the mask",)))
        rows[family] = Row(
            family,
            (*before.variants, name),
            max(before.prefill, prefill),
            max(before.decode, decode),
            (*before.controls, *(word for word in words if word not in before.controls)),
        )
    return list(rows.values())


def render(rows: list[Row]) -> str:
    """The page."""
    version = transformers.__version__
    body = "".join("| " + " | ".join(row.cells()) + " |\n" for row in rows)
    return HEAD.format(version=version, tolerance=f"{TOLERANCE:g}") + body


def main() -> int:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        page = render(compare(Path(folder)))
    if write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
