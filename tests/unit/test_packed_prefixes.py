"""Answers that go on from one prompt: the numbers and gradients of prompt and answer laid end to end each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepseek_r1.config.precision import parse_precision
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.loading import load_decoder
from support import tiny

LENGTHS, PREFIXES = [9, 5, 1, 3, 6, 4], [None, 0, 0, None, 3, 0]


@pytest.mark.parametrize("pack", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "qwen3_moe", "gemma3"])
def test_a_prompt_that_is_there_once_changes_no_number(family: str, pack: bool, models_folder: Path) -> None:
    decoder = load_decoder(tiny.save(family, models_folder), parse_precision("fp32"), pack=pack)
    decoder.requires_grad_(False)
    ids = torch.randint(3, decoder.config.vocab_size, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    parts = ids.split(LENGTHS)
    embedding = torch.randn(decoder.config.vocab_size, decoder.config.hidden_size) * 0.02
    starts = [0 if prefix is None else LENGTHS[prefix] for prefix in PREFIXES]
    positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, LENGTHS, strict=True)])

    def run(ids: torch.Tensor, positions: torch.Tensor, context: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        table = embedding.clone().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "_embed", lambda ids: table.index_select(0, ids))
            return decoder(ids, positions, context), table

    shared, table = run(ids, positions, Packed(LENGTHS, PREFIXES))
    weights = torch.randn(shared.shape, generator=torch.Generator().manual_seed(2))
    (of_shared,) = torch.autograd.grad((shared * weights).sum(), table)

    whole = [
        part if prefix is None else torch.cat((parts[prefix], part))
        for part, prefix in zip(parts, PREFIXES, strict=True)
    ]
    lengths = [len(one) for one in whole]
    alone, table = run(torch.cat(whole), torch.cat([torch.arange(n) for n in lengths]), Packed(lengths))
    own = torch.cat([one[start:] for one, start in zip(alone.split(lengths), starts, strict=True)])
    (of_own,) = torch.autograd.grad((own * weights).sum(), table)
    if pack:
        assert torch.equal(own, shared)
    torch.testing.assert_close(own, shared, rtol=1e-5, atol=1e-5)
    scale = float(of_own.abs().max())
    torch.testing.assert_close(of_shared, of_own, rtol=1e-4, atol=1e-5 * scale)
