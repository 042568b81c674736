"""GGUF headers that lie, or ask for what is not built: a typed error names the key or the tensor, whatever it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_variants import NEWEST, save
from gguf_writer import write_gguf

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.families.gguf_fields import NEUTRAL
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.registry import read_config
from deepseek_r1.models.shapes import parameter_count

ANY = {
    "attention.causal": False,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.shared_kv_layers": 1,
    "attention.temperature_scale": 0.1,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "nextn_predict_layers": 1,
    "rope.dimension_sections": [2, 1, 1, 0],
    "rope.scale_linear": 2.0,
    "rope.scaling.alpha": 1000.0,
    "rope.scaling.yarn_attn_factor": 1.2,
    "rope.scaling.yarn_ext_factor": 0.5,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {key: value}) for name in ("llama", "deepseek_v3-yarn") for key, value in ANY.items()),
        ("llama", {"attention.scale": 0.1}),
        ("llama", {"embedding_scale": 12.0}),
        ("llama", {"rope.scaling.type": "longrope"}),
        ("llama", {"rope.scaling.attn_factor": 1.2}),
        ("llama", {"rope.dimension_count": 4}),
        ("llama", {"attention.value_length": 16, "attention.key_length": 8}),
        ("llama", {"expert_count": [6, 6, 6]}),
        ("mixtral", {"expert_gating_func": 2}),
        ("mixtral", {"expert_weights_scale": 2.5}),
        ("mixtral", {"expert_weights_norm": False}),
        ("qwen3_moe", {"expert_shared_count": 1}),
        ("qwen3_moe", {"leading_dense_block_count": 1}),
        ("deepseek_v2-lite", {"expert_gating_func": 3}),
        ("deepseek_v2-lite", {"expert_weights_norm": True}),
        ("deepseek_v2-lite", {"attention.sliding_window": 9}),
        ("deepseek_v2-lite", {"attention.head_count_kv": 6}),
        ("deepseek_v2-lite", {"attention.key_length": 20}),
        ("deepseek_v2-lite", {"rope.scaling.factor": 2.0}),
        ("gemma3-sixth", {"rope.scaling.type": "yarn"}),
        ("phi3-full", {"rope.scaling.type": "yarn"}),
        ("olmo2", {"attention.sliding_window": 9}),
        ("olmo2", {"attention.sliding_window_pattern": [True, True, False]}),
        ("granite", {"expert_count": 4}),
        ("granite", {"rope.scaling.finetuned": False}),
        ("smollm3-fourth", {"attention.sliding_window": 9}),
    ],
    ids=str,
)
def test_what_is_not_built_is_refused_by_name(
    name: str, changes: dict[str, Any], models_folder: Path, tmp_path: Path
) -> None:
    path = write_gguf(save(name, models_folder), tmp_path / "tiny.gguf", changes=changes)
    with pytest.raises(UnsupportedError, match=next(iter(changes))):
        load_decoder(path, DeepSeekConfig(), pack=False)


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("llama", {"block_count": 4}, "blk.3"),
        ("llama", {"block_count": [3]}, "block_count"),
        ("llama", {"attention.head_count_kv": [2, 2, 2]}, "head_count_kv"),
        ("llama", {"rope.freq_base": float("nan")}, "freq_base"),
        ("llama", {"attention.key_length": 7, "attention.value_length": 7}, "multiple of 2"),
        ("llama", {"feed_forward_length": [1] * 5000}, "5000 values"),
        ("mixtral", {"expert_count": 5}, "shape"),
        ("mixtral", {"expert_used_count": 7}, "expert_used_count"),
        ("qwen3-yarn", {"rope.scaling.factor": None}, "factor"),
        ("deepseek_v2-lite", {"rope.dimension_count": 20, "attention.key_length": 44}, "leaves nothing"),
        ("deepseek_v2-lite", {"rope.dimension_count": None}, "dimension_count"),
        ("deepseek_v2-lite", {"attention.kv_lora_rank": None}, "kv_lora_rank"),
        ("deepseek_v2-lite", {"attention.value_length_mla": None}, "value_length_mla"),
        ("deepseek_v2-lite", {"attention.value_length_mla": 13}, "shape"),
        ("deepseek_v2-lite", {"leading_dense_block_count": 4}, "leading_dense_block_count"),
        ("deepseek_v2-lite", {"leading_dense_block_count": 3}, "blk.1.ffn_gate"),
        ("deepseek_v2-lite", {"expert_shared_count": 65}, "expert_shared_count"),
        ("deepseek_v2-lite", {"expert_count": None}, "expert_count"),
        ("deepseek_v2-grouped", {"expert_group_count": 3}, "multiple of 3"),
        ("deepseek_v2-grouped", {"expert_group_used_count": None}, "expert_group_used_count"),
        ("deepseek_v2-grouped", {"rope.scaling.yarn_log_multiplier": None}, "yarn_log_multiplier"),
        ("deepseek_v3-yarn", {"expert_group_count": 8, "expert_group_used_count": 4}, "best two"),
        ("deepseek_v2-lite", {"expert_gating_func": 2}, "exp_probs_b"),
        ("gemma3-sixth", {"rope.freq_base": None}, "freq_base"),
        ("gemma3-sixth", {"attention.sliding_window": None}, "sliding_window"),
        ("gemma3-sixth", {"attention.sliding_window_pattern": [True, False]}, "truth values"),
        ("gemma3-sixth", {"attention.sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("phi3-full", {"attention.sliding_window": None}, "sliding_window"),
        ("phi3-full", {"rope.dimension_count": 7}, "multiple of 2"),
        ("phi3-full", {"rope.scaling.type": "longrope"}, "rope_factors_short"),
        ("phi3-longrope", {"rope.scaling.attn_factor": None}, "attn_factor"),
        ("phi3-longrope", {"rope.scaling.original_context_length": None}, "original_context_length"),
        ("glm4", {"rope.dimension_count": None}, "dimension_count"),
        ("glm4", {"rope.dimension_count": 18}, "dimension_count"),
        ("granite", {"logit_scale": -1.0}, "logit_scale"),
    ],
    ids=str,
)
def test_lying_headers_are_named(
    name: str, changes: dict[str, Any], word: str, models_folder: Path, tmp_path: Path
) -> None:
    path = write_gguf(save(name, models_folder), tmp_path / "tiny.gguf", changes=changes)
    with pytest.raises(CheckpointError, match=word):
        load_decoder(path, DeepSeekConfig(), pack=False)


@pytest.mark.parametrize(
    ("name", "tensor", "error"),
    [
        ("llama", "blk.0.attn_q.bias", CheckpointError),
        ("llama", "blk.0.attn_k.bias", UnsupportedError),
        ("llama", "blk.0.attn_sinks.weight", UnsupportedError),
        ("llama", "rope_factors_short.weight", UnsupportedError),
        ("phi3-full", "blk.0.attn_qkv.bias", UnsupportedError),
        ("gemma3-sixth", "rope_freqs.weight", UnsupportedError),
        ("deepseek_v2-lite", "blk.1.exp_probs_b.bias", UnsupportedError),
        ("deepseek_v3-yarn", "blk.3.nextn.eh_proj.weight", UnsupportedError),
    ],
)
def test_no_tensor_is_left_out(
    name: str, tensor: str, error: type[Exception], models_folder: Path, tmp_path: Path
) -> None:
    path = write_gguf(save(name, models_folder), tmp_path / "tiny.gguf", tensors={tensor: torch.ones(8)})
    with pytest.raises(error, match="blk.0.attn_..bias" if error is CheckpointError else tensor):
        load_decoder(path, DeepSeekConfig(), pack=False)


@pytest.mark.parametrize("name", NEWEST)
def test_any_value_of_any_key_loads_or_is_refused(name: str, models_folder: Path, tmp_path: Path) -> None:
    values = (None, 0, 1, -1, 2**40, 0.0, -0.5, float("nan"), float("inf"), True, "", "yarn", np.arange(3), np.zeros(0))
    path = write_gguf(save(name, models_folder), tmp_path / "tiny.gguf")
    with open_checkpoint(path) as checkpoint:
        prefix = f"{checkpoint.metadata['general.architecture']}."
        keys = {key for key in checkpoint.metadata if key.startswith(prefix)}
        refused = 0
        for key in sorted(keys | {prefix + key for key in NEUTRAL} | {f"{prefix}rope.scaling.type"}):
            kept = dict(checkpoint.metadata)
            for value in values:
                checkpoint.metadata[key] = value
                try:
                    config = read_config(checkpoint)
                except (CheckpointError, UnsupportedError) as error:
                    assert error.remedy
                    refused += 1
                else:
                    assert parameter_count(config) > 0
            checkpoint.metadata.clear()
            checkpoint.metadata.update(kept)
        assert refused >= 5 * len(keys)


@pytest.mark.parametrize("divisors", [torch.ones(3), torch.ones(4, 1), torch.zeros(4), torch.full((4,), torch.inf)])
def test_divisors_are_one_positive_number_per_frequency(
    divisors: torch.Tensor, models_folder: Path, tmp_path: Path
) -> None:
    path = write_gguf(save("llama", models_folder), tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": divisors})
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        load_decoder(path, DeepSeekConfig(), pack=False)
