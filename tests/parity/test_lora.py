"""Adapters equal PEFT's: logits, gradients, and files both ways; and one engine step computes what training does."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_r1.config.lora import LoraConfig
from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.core.errors import CheckpointError, ConfigError, UnsupportedError
from deepseek_r1.layers.context import Packed
from deepseek_r1.layers.lora import Segment
from deepseek_r1.models.adapters import (
    add_adapter,
    factors,
    load_adapter,
    merge_adapter,
    remove_adapter,
    save_adapter,
    trained_factors,
)
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from support import tiny
from support.native_paths import bits

FAMILIES = ("llama", "qwen2", "qwen3", "mistral-window", "gemma3", "olmo2", "granite", "smollm3")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LENGTHS = [19, 8]


def ids_of(length: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(0, tiny.SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


IDS = torch.cat((ids_of(19), ids_of(8, seed=3)))
POSITIONS = torch.cat((torch.arange(19), torch.arange(8)))


def logits_of(decoder: Decoder, adapter: str | None = "own") -> torch.Tensor:
    with decoder.adapters.everywhere(adapter):
        return decoder.logits(decoder(IDS, POSITIONS, Packed(LENGTHS)))


def fill(decoder: Decoder, name: str = "own", seed: int = 1) -> None:
    """Factors far from zero: an adapter that changes nothing would show nothing."""
    generator = torch.Generator().manual_seed(seed)
    for part in factors(decoder, name).values():
        part.lora_B.weight.data.normal_(0, 0.2, generator=generator)
        part.lora_B.refresh()


def with_adapter(path: Path, *, pack: bool, precision: str = "fp32", **options: object) -> tuple[Decoder, LoraConfig]:
    config = LoraConfig(**({"r": 4, "alpha": 8.0, "targets": TARGETS, "dropout": 0.0} | options))  # type: ignore[arg-type]
    decoder = load_decoder(path, parse_precision(precision), pack=pack)
    assert add_adapter(decoder, "own", config, seed=5)
    return decoder, config


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_peft(family: str, pack: bool, models_folder: Path, tmp_path: Path) -> None:
    """A saved adapter loads in PEFT; logits and gradients agree."""
    path = tiny.save(family, models_folder)
    decoder, config = with_adapter(path, pack=pack)
    plain = load_decoder(path, DeepSeekConfig(), pack=pack)
    assert torch.equal(bits(logits_of(decoder).detach()), bits(logits_of(plain, None).detach())), "B is zeros"
    fill(decoder)
    save_adapter(decoder, "own", tmp_path, config, str(path))
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    ours = logits_of(decoder)
    want = torch.cat([theirs(part[None]).logits[0] for part in IDS.split(LENGTHS)])
    assert float((want - logits_of(plain, None)).detach().abs().max()) > 0.5, "the adapter is felt"
    assert float((ours - want).detach().abs().max()) <= 1e-4 * max(1.0, float(want.detach().abs().max()))
    ours.logsumexp(-1).sum().backward()
    want.logsumexp(-1).sum().backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    compared = 0
    for name, parameter in trained_factors(decoder, "own"):
        leaf, factor = name.split(".")[-2:]
        layer = name.split(".")[1]
        (key,) = (k for k in grads if f"layers.{layer}." in k and f".{leaf}.{factor}." in k)
        target = grads.pop(key)
        torch.testing.assert_close(parameter.grad, target, rtol=1e-4, atol=1e-4 * float(target.abs().max()), msg=name)
        compared += 1
    assert not grads and compared == 2 * len(factors(decoder, "own"))


def test_loads_what_peft_saves(models_folder: Path, tmp_path: Path) -> None:
    path = tiny.save("llama", models_folder)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    theirs = peft.get_peft_model(
        base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    ).eval()
    theirs.save_pretrained(tmp_path)
    decoder = load_decoder(path, DeepSeekConfig(), pack=True)
    config = load_adapter(decoder, "own", tmp_path)
    assert (config.r, config.alpha, set(config.targets)) == (3, 5.0, {"q_proj", "down_proj"})
    want = torch.cat([theirs(part[None]).logits[0] for part in IDS.split(LENGTHS)])
    torch.testing.assert_close(logits_of(decoder), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_rows_of_several_adapters_are_those_of_each_alone(precision: str, models_folder: Path) -> None:
    """Same bits: two adapters and none in one batch."""
    path = tiny.save("llama", models_folder)
    decoder, config = with_adapter(path, pack=True, precision=precision)
    add_adapter(decoder, "other", config.update(r=7, targets=("v_proj", "up_proj")), seed=9)
    fill(decoder)
    fill(decoder, "other", seed=2)
    alone = {name: logits_of(decoder, name) for name in ("own", "other", None)}
    assert not torch.equal(alone["own"], alone["other"])
    for segments in (
        (Segment("own", 0, 19), Segment("other", 19, 27)),
        (Segment("other", 0, 19),),
        (Segment("own", 19, 27),),
        (),
    ):
        with decoder.adapters.at(segments):
            mixed = decoder.logits(decoder(IDS, POSITIONS, Packed(LENGTHS)))
        for start, stop in ((0, 19), (19, 27)):
            name = next((s.adapter for s in segments if s.start == start), None)
            assert torch.equal(bits(mixed[start:stop]), bits(alone[name][start:stop]))
    remove_adapter(decoder, "own")
    assert not factors(decoder, "own") and torch.equal(logits_of(decoder, "own"), alone[None])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_a_file_holds_the_bits_of_the_policy(precision: str, models_folder: Path, tmp_path: Path) -> None:
    """Whatever the base's format, and in half the bytes where products read halves."""
    decoder, config = with_adapter(tiny.save("llama", models_folder), pack=True, precision=precision)
    fill(decoder)
    save_adapter(decoder, "own", tmp_path, config, "base")
    load_adapter(decoder, "other", tmp_path)
    assert torch.equal(bits(logits_of(decoder, "other")), bits(logits_of(decoder)))
    numbers = sum(parameter.numel() for _, parameter in trained_factors(decoder, "own"))
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < numbers * (4 if precision == "fp32" else 2) + 16_384


@torch.no_grad()
def test_a_merged_adapter_changes_the_model_as_it_did_beside_it(models_folder: Path) -> None:
    decoder, _ = with_adapter(tiny.save("llama", models_folder), pack=False)
    fill(decoder)
    beside = logits_of(decoder)
    merge_adapter(decoder, "own")
    torch.testing.assert_close(logits_of(decoder, None), beside, rtol=1e-4, atol=1e-4)
    packed, _ = with_adapter(tiny.save("llama", models_folder), pack=True)
    with pytest.raises(ValueError, match="pack=False"):
        merge_adapter(packed, "own")


def test_what_cannot_be_loaded_is_named(models_folder: Path, tmp_path: Path) -> None:
    path = tiny.save("llama", models_folder)
    decoder, config = with_adapter(path, pack=True)
    with pytest.raises(ConfigError, match="no linear is called 'qq_proj'"):
        add_adapter(decoder, "more", config.update(targets=("qq_proj",)))
    with pytest.raises(ConfigError, match="no name"):
        load_adapter(decoder, "a.b", tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_adapter(decoder, "more", tmp_path)
    save_adapter(decoder, "own", tmp_path, config, "base")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, error, words in (
        ({"peft_type": "IA3"}, UnsupportedError, "not LORA"),
        ({"use_dora": True}, UnsupportedError, "use_dora"),
        ({"bias": "all"}, UnsupportedError, "bias"),
        ({"r": 5}, CheckpointError, "fits the model"),
        ({"r": "many"}, CheckpointError, "make no sense"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields | change))
        with pytest.raises(error, match=words):
            load_adapter(decoder, "more", tmp_path)
    assert not factors(decoder, "more")
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    wider = load_decoder(tiny.save("qwen3", models_folder), DeepSeekConfig(), pack=True)
    with pytest.raises(CheckpointError):
        load_adapter(wider, "more", tmp_path)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v2-lite", "deepseek_v3"])
def test_gradients_pass_experts_and_latents(family: str, models_folder: Path) -> None:
    """Through packed stacks as through plain weights, whose gradients are those of transformers (test_families)."""
    found = []
    for pack in (False, True):
        decoder, _ = with_adapter(tiny.save(family, models_folder), pack=pack, targets=("all-linear",))
        fill(decoder)
        logits_of(decoder).logsumexp(-1).sum().backward()
        found.append({name: parameter.grad for name, parameter in trained_factors(decoder, "own")})
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 12
    for name, want in found[0].items():
        assert want is not None and want.abs().max() > 1e-5, name
        torch.testing.assert_close(found[1][name], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()), msg=name)
