"""A whole DeepSeek-V3 in FP8 blocks, as R1 is published: bit for bit the model that its dequantised weights make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import ids_of, packed_logits

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.loading import load_decoder
from support import tiny

BLOCK = 32  # smaller than published ones, so that tiny matrices have several


def blocks_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """E4M3 codes, scales of BLOCK x BLOCK, and what they stand for in float32."""
    rows, columns = weight.shape
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    values = torch.empty_like(weight)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[place].abs().max() / 448
            codes[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
            values[place] = codes[place].float() * scales[i, j]
    return codes, scales, values


@pytest.fixture(scope="module")
def folders(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model in FP8, and in float32 with the values that those stand for."""
    source = tiny.save("deepseek_v3", models_folder)
    quantised, plain = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name and "gate.weight" not in name:
            quantised[name], quantised[f"{name}_scale_inv"], plain[name] = blocks_of(weight)
        else:
            quantised[name] = plain[name] = weight
    root = tmp_path_factory.mktemp("fp8")
    config = json.loads((source / "config.json").read_text())
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    for folder, tensors, extra in (
        ("fp8", quantised, {"quantization_config": settings | {"activation_scheme": "dynamic"}}),
        ("plain", plain, {}),
    ):
        (root / folder).mkdir()
        save_file(tensors, root / folder / "model.safetensors", metadata={"format": "pt"})
        (root / folder / "config.json").write_text(json.dumps(config | extra))
    return root / "fp8", root / "plain"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_weight_and_every_logit(folders: tuple[Path, Path], precision: str) -> None:
    quantised, plain = (load_decoder(f, DeepSeekConfig(precision_mode=precision), pack=False) for f in folders)
    for (name, one), (_, other) in zip(quantised.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(packed_logits(quantised, ids_of(30)), packed_logits(plain, ids_of(30)))


def test_a_missing_scale_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(folders[0], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.self_attn.kv_b_proj.weight_scale_inv"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"kv_b_proj\.weight"):
        load_decoder(broken, DeepSeekConfig(), pack=False)
