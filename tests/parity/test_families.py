"""Every family equals transformers in fp32: prefill, paged decode, chunks; each check is shown to be able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.layers.context import KVLayout, Packed
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
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


class ShiftedMask(Packed):
    """A context that sees one key too few: the mask is off by one."""

    def attend(self, layer_index, q, k, v, layout: KVLayout, scale, window=None):  # type: ignore[no-untyped-def]
        out = super().attend(layer_index, q, k, v, layout, scale, max(1, q.shape[0] - 1))
        return out


def test_controls_fail(pair: tuple[torch.nn.Module, Path]) -> None:
    """The same comparison with rope off, the mask shifted, or the window ignored is far outside the tolerance."""
    reference, path = pair
    ids = ids_of(33)
    want = reference_logits(reference, ids)
    decoder = load_decoder(path, DeepSeekConfig(), pack=False)
    assert (packed_logits(decoder, ids, ShiftedMask([33])) - want).abs().max() > 100 * TOLERANCE
    decoder.rotary.inverse_frequencies.zero_()
    assert (packed_logits(decoder, ids) - want).abs().max() > 100 * TOLERANCE
    if any(decoder.config.windows):
        decoder = load_decoder(path, DeepSeekConfig(), pack=False)
        for layer in decoder.layers:
            layer.attention.window = None
        assert (packed_logits(decoder, ids) - want).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_gradients_flow_through_packed(name: str, models_folder: Path) -> None:
    """Packed is differentiable, and two packed sequences have the gradients of each alone."""
    path = tiny.save(name, models_folder)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    decoder = load_decoder(path, DeepSeekConfig(), pack=False).requires_grad_(True)
    decoder.tie_weights()
    first, second = ids_of(19), ids_of(8, seed=3)
    ids = torch.cat((first, second))
    positions = torch.cat((torch.arange(19), torch.arange(8)))
    logits = decoder.logits(decoder(ids, positions, Packed([19, 8])))
    logits.logsumexp(-1).sum().backward()
    (reference(first[None]).logits.logsumexp(-1).sum() + reference(second[None]).logits.logsumexp(-1).sum()).backward()
    want = reference.model.layers[0].self_attn.q_proj.weight.grad
    got = decoder.layers[0].attention.qkv.q_proj.weight.grad
    assert want.abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
