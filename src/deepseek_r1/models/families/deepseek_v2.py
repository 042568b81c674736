"""DeepSeek-V2 and V2-Lite: latent attention, and experts chosen by softmax, within the best groups or among all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import latent
from deepseek_r1.models.families.base import Family


def from_hf(fields: Fields) -> ModelConfig:
    """DeepSeek-V2's config.json."""
    fields.expect("scoring_func", ("softmax",))
    fields.expect("norm_topk_prob", (False,))
    fields.expect("topk_method", ("greedy", "group_limited_greedy"))
    moe = latent.hf_experts(fields, normalise=False)
    if fields.values.get("topk_method") != "group_limited_greedy":
        moe = replace(moe, groups=1, active_groups=1)
    return latent.hf_config(fields, "deepseek_v2", moe)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """DeepSeek-V2's config.json."""
    grouped = config.moe is not None and config.moe.groups > 1
    method = "group_limited_greedy" if grouped else "greedy"
    return latent.to_hf(config, "DeepseekV2ForCausalLM", topk_method=method, scoring_func="softmax")


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """DeepSeek-V2's GGUF header; the first files don't say that scores are by softmax."""
    fields.expect("expert_gating_func", (0, 1))
    fields.expect("expert_weights_norm", (False,))
    return latent.gguf_config(fields, tensors, "deepseek_v2", normalise=False)


FAMILY = Family(
    "deepseek_v2",
    from_hf,
    to_hf,
    latent.HF,
    from_gguf,
    latent.GGUF,
    latent.GGUF_OLDER,
    gguf_divisors=(),
)
