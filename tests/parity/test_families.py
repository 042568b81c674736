"""Every family equals transformers in fp32: prefill, paged decode, chunks, prefixes, gradients. The checks can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.layers.context import KVLayout, Packed
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.families.forms import PLUS_ONE
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.registry import FAMILIES
from deepseek_r1.models.shapes import parameter_shapes
from deepseek_r1.models.surgery import train_all
from support import tiny

TOLERANCE = 1e-4
LENGTHS = (1, 2, 7, 16, 33, 101)  # odd ones, one block exactly, several blocks and a bit


def ids_of(length: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(0, tiny.SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def packed_logits(decoder: Decoder, ids: torch.Tensor, ctx: object | None = None) -> torch.Tensor:
    context = ctx or Packed([len(ids)])
    return decoder.logits(decoder(ids, torch.arange(len(ids)), context))


@torch.no_grad()
def paged_logits(decoder: Decoder, ids: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """Logits of all positions, computed chunk by chunk over scattered blocks."""
    cache = KVCache(decoder.layouts, 16, 16)
    blocks = [11, 3, 14, 0, 7, 9, 5, 1]
    out, start = [], 0
    for count in chunks:
        paged = Paged(cache, [Span(start, count, blocks)])
        out.append(decoder.logits(decoder(ids[start : start + count], paged.positions, paged)))
        start += count
    assert start == len(ids)
    return torch.cat(out)


@pytest.fixture(params=tiny.FAMILIES)
def pair(request: pytest.FixtureRequest, models_folder: Path) -> tuple[torch.nn.Module, Path]:
    path = tiny.save(request.param, models_folder)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    return reference, path


@torch.no_grad()
def reference_logits(reference: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return reference(ids[None], use_cache=False).logits[0]


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_equals_transformers(pair: tuple[torch.nn.Module, Path], pack: bool) -> None:
    reference, path = pair
    decoder = load_decoder(path, DeepSeekConfig(), pack=pack)
    for length in LENGTHS:
        ids = ids_of(length)
        want = reference_logits(reference, ids)
        assert want.std() >= 1, "at this scale a wrong formula would not show"
        assert (packed_logits(decoder, ids) - want).abs().max() <= TOLERANCE
        assert (paged_logits(decoder, ids, [length]) - want).abs().max() <= TOLERANCE
        assert (paged_logits(decoder, ids, [1] * length) - want).abs().max() <= TOLERANCE
        if length > 20:
            assert (paged_logits(decoder, ids, [5, 13, length - 19, 1]) - want).abs().max() <= TOLERANCE


def test_decode_equals_transformers_cached_decode(pair: tuple[torch.nn.Module, Path]) -> None:
    reference, path = pair
    decoder = load_decoder(path, DeepSeekConfig(), pack=True)
    ids = ids_of(40)
    with torch.no_grad():
        first = reference(ids[None, :25], use_cache=True)
        want, past = [first.logits[0]], first.past_key_values
        for token in ids[25:]:
            step = reference(token.view(1, 1), past_key_values=past, use_cache=True)
            want.append(step.logits[0])
            past = step.past_key_values
    assert (paged_logits(decoder, ids, [25] + [1] * 15) - torch.cat(want)).abs().max() <= TOLERANCE


def test_a_shared_prefix_equals_transformers(pair: tuple[torch.nn.Module, Path]) -> None:
    """Two sequences over the same cached blocks of a prefix, the second with another end."""
    reference, path = pair
    decoder = load_decoder(path, DeepSeekConfig(), pack=True)
    prefix, ends = ids_of(48), (ids_of(9, seed=1), ids_of(23, seed=2))
    cache = KVCache(decoder.layouts, 16, 16)
    with torch.no_grad():
        paged = Paged(cache, [Span(0, 48, [4, 9, 2])])
        decoder(prefix, paged.positions, paged)
        spans = [Span(48, 9, [4, 9, 2, 7]), Span(48, 23, [4, 9, 2, 11, 1])]
        paged = Paged(cache, spans)
        got = decoder.logits(decoder(torch.cat(ends), paged.positions, paged)).split((9, 23))
    for end, logits in zip(ends, got, strict=True):
        want = reference_logits(reference, torch.cat((prefix, end)))[48:]
        assert (logits - want).abs().max() <= TOLERANCE


class ShiftedMask(Packed):
    """A context that sees one key too few: the mask is off by one."""

    def attend(self, layer_index, q, k, v, layout: KVLayout, scale, window=None):  # type: ignore[no-untyped-def]
        out = super().attend(layer_index, q, k, v, layout, scale, max(1, q.shape[0] - 1))
        return out


def drop_an_expert(decoder: Decoder) -> None:
    """Silence the expert that the last layer used most."""
    mlp = decoder.layers[-1].mlp
    mlp.experts.down_proj.weight[int(mlp.expert_tokens.argmax())] = 0


def switch_normalisation(decoder: Decoder) -> None:
    """Weigh the chosen experts without dividing by their sum, or with it where that is right."""
    for layer in decoder.layers:
        if decoder.config.has_experts(layer.attention.layer_index):
            layer.mlp.router.normalise ^= True


def forget_the_windows(decoder: Decoder) -> None:
    """Attend to everything in every layer."""
    for layer in decoder.layers:
        layer.attention.window = None


def use_one_rope(decoder: Decoder) -> None:
    """The first rope everywhere, where a model has two or leaves layers without."""
    object.__setattr__(decoder.config, "layer_ropes", (0,) * decoder.config.layers)


def turn_rope_off(decoder: Decoder) -> None:
    """No position anywhere."""
    for rotary in decoder.rotaries:
        rotary.inverse_frequencies.zero_()


def controls(decoder: Decoder) -> list[Callable[[Decoder], None]]:
    """The mutilations that this model has something to lose by."""
    config = decoder.config
    out = [turn_rope_off]
    out += [forget_the_windows] if any(config.windows) else []
    out += [use_one_rope] if set(config.layer_ropes) != {0} else []
    out += [drop_an_expert, switch_normalisation] if config.moe is not None else []
    return out


@torch.no_grad()
def test_controls_fail(pair: tuple[torch.nn.Module, Path]) -> None:
    """The same comparison is far outside the tolerance once anything is taken away."""
    reference, path = pair
    ids = ids_of(33)
    want = reference_logits(reference, ids)
    decoder = load_decoder(path, DeepSeekConfig(), pack=False)
    assert (packed_logits(decoder, ids, ShiftedMask([33])) - want).abs().max() > 100 * TOLERANCE
    for control in controls(decoder):
        decoder = load_decoder(path, DeepSeekConfig(), pack=False)
        packed_logits(decoder, ids)
        control(decoder)
        assert (packed_logits(decoder, ids) - want).abs().max() > 100 * TOLERANCE, control.__doc__


@pytest.mark.parametrize("learning", [False, True], ids=["plain", "masters"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_gradients_equal_those_of_transformers(name: str, learning: bool, models_folder: Path) -> None:
    """Packed is differentiable, and two packed sequences have the gradients of each alone: of every weight.

    So it is of plain weights, and of masters whose packed forms native kernels multiply by.
    """
    path = tiny.save(name, models_folder)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    decoder = load_decoder(path, DeepSeekConfig(), pack=False).requires_grad_(True)
    decoder.tie_weights()
    if learning:
        train_all(decoder)
    first, second = ids_of(19), ids_of(8, seed=3)
    ids = torch.cat((first, second))
    positions = torch.cat((torch.arange(19), torch.arange(8)))
    logits = decoder.logits(decoder(ids, positions, Packed([19, 8])))
    logits.logsumexp(-1).sum().backward()
    (reference(first[None]).logits.logsumexp(-1).sum() + reference(second[None]).logits.logsumexp(-1).sum()).backward()
    config, ours = decoder.config, dict(decoder.named_parameters())
    theirs = {key: value.grad for key, value in reference.named_parameters()}
    fused = [key for key in theirs if key.endswith("experts.gate_up_proj")]
    for key in fused:
        prefix = key.removesuffix("gate_up_proj")
        theirs[f"{prefix}gate_proj"], theirs[f"{prefix}up_proj"] = theirs.pop(key).chunk(2, dim=1)
    compared = 0
    for weight in FAMILIES.load(config.family).weights("safetensors", config, parameter_shapes(config)):
        key = weight.stored.replace(".{e}", "").replace("block_sparse_moe", "mlp")
        if "{e}" in weight.stored:
            key = key.replace(key.split("experts.")[1], weight.ours[0].split(".")[-2])
        if "e_score_correction_bias" in key:
            continue
        # Gemma's norms are stored less one, which gradients don't feel.
        parts = [ours[part].grad for part in weight.ours]
        got = parts[0] if weight.form is PLUS_ONE else weight.form.join(parts, config)
        want = theirs.pop(key)
        assert got.abs().max() > 1e-4, key
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()), msg=key)
        compared += 1
    assert compared > 10 and not theirs, "a weight of transformers was not compared"
