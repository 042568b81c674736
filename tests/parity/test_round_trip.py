"""Our weights as a Hugging Face directory: transformers loads it and gives the same logits, for every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_families import TOLERANCE, ids_of, packed_logits, reference_logits
from transformers import AutoConfig, AutoModelForCausalLM

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.saving import save_model
from support import tiny


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_transformers_loads_what_we_save(name: str, models_folder: Path, tmp_path: Path) -> None:
    source = tiny.save(name, models_folder)
    decoder = load_decoder(source, DeepSeekConfig(), pack=False, mtp=True)
    saved = save_model(decoder, tmp_path / "saved")
    reference, information = AutoModelForCausalLM.from_pretrained(
        saved, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(information[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = ids_of(61)
    want = reference_logits(AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval(), ids)
    assert (reference_logits(reference.eval(), ids) - want).abs().max() <= 1e-5
    again = load_decoder(saved, DeepSeekConfig(), pack=False, mtp=True)
    assert again.config == decoder.config
    assert (packed_logits(again, ids) - want).abs().max() <= TOLERANCE
    for (key, ours), (_, theirs) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        # (1 + w) - 1 rounds once; everything else is moved, not computed.
        tolerance = 1e-6 if "gemma3" in name and "norm" in key else 0
        assert (ours - theirs).abs().max() <= tolerance, key


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_saved_files_are_the_ones_transformers_writes(name: str, models_folder: Path, tmp_path: Path) -> None:
    """Same tensor names, shapes and (but for Gemma's norms) bits as transformers' own `save_pretrained`."""
    source = tiny.save(name, models_folder)
    saved = save_model(load_decoder(source, DeepSeekConfig(), pack=False), tmp_path / "saved")
    with open_checkpoint(source) as theirs, open_checkpoint(saved) as ours:
        assert set(ours.tensors) == set(theirs.tensors)
        for key in theirs.tensors:
            assert ours.tensors[key].shape == theirs.tensors[key].shape, key
            difference = abs(ours.read(key) - theirs.read(key)).max()
            assert difference <= (1e-6 if "gemma3" in name and "norm" in key else 0), key
    config = json.loads((saved / "config.json").read_text())
    assert AutoConfig.from_pretrained(saved).model_type == config["model_type"]


def test_bf16_is_saved_bit_for_bit(models_folder: Path, tmp_path: Path) -> None:
    source = tiny.save("deepseek_v3", models_folder)
    decoder = load_decoder(source, DeepSeekConfig(precision_mode="bf16"), pack=False)
    again = load_decoder(save_model(decoder, tmp_path), DeepSeekConfig(precision_mode="bf16"), pack=False)
    for (key, ours), (_, theirs) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), key


def test_a_packed_decoder_is_refused(models_folder: Path, tmp_path: Path) -> None:
    decoder = load_decoder(tiny.save("llama", models_folder), DeepSeekConfig(), pack=True)
    with pytest.raises(ValueError, match="pack=False"):
        save_model(decoder, tmp_path)
