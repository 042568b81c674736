"""DeepSeek-V3 and R1: latent attention, sigmoid experts balanced by a bias, and multi-token prediction modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families import latent
from deepseek_r1.models.families.base import Family, Table, Weight

_LAYERS: Table = (
    *latent.HF,
    Weight("model.layers.{i}.mlp.gate.e_score_correction_bias", ("layers.{i}.mlp.router.bias",)),
)

# A prediction module is stored as a layer behind the last, with its own norms. The copies of the embedding and of the
# output layer that stand beside it are the main model's and aren't read.
_MODULES: Table = (
    Weight("model.layers.{m}.enorm.weight", ("mtp.{i}.embedding_norm.weight",)),
    Weight("model.layers.{m}.hnorm.weight", ("mtp.{i}.hidden_norm.weight",)),
    Weight("model.layers.{m}.eh_proj.weight", ("mtp.{i}.project.weight",)),
    Weight("model.layers.{m}.shared_head.norm.weight", ("mtp.{i}.norm.weight",)),
    *(
        replace(
            weight,
            stored=weight.stored.replace("{i}", "{m}"),
            ours=tuple(name.replace("layers.{i}", "mtp.{i}.block") for name in weight.ours),
        )
        for weight in _LAYERS
        if "{i}" in weight.stored
    ),
)

_LONELY = "leaves fewer than two experts in a group, which is judged by its best two"


def from_hf(fields: Fields) -> ModelConfig:
    """DeepSeek-V3's (and R1's) config.json."""
    fields.expect("scoring_func", ("sigmoid",))
    fields.expect("topk_method", ("noaux_tc",))
    normalise = fields.boolean("norm_topk_prob", True)
    moe = latent.hf_experts(fields, score="sigmoid", normalise=normalise, bias=True)
    if moe.groups > 1 and moe.experts // moe.groups < 2:
        raise fields.fail("n_group", _LONELY)
    modules = fields.integer("num_nextn_predict_layers", 0, least=0, most=16)
    return latent.hf_config(fields, "deepseek_v3", moe, mtp_layers=modules)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """DeepSeek-V3's config.json."""
    return latent.to_hf(
        config,
        "DeepseekV3ForCausalLM",
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        num_nextn_predict_layers=config.mtp_layers,
    )


def from_gguf(fields: Fields, tensors: set[str]) -> ModelConfig:
    """DeepSeek-V3's (and R1's) GGUF header; its files leave out the prediction modules."""
    fields.expect("expert_gating_func", (2,))
    normalise = fields.boolean("expert_weights_norm", False)
    config = latent.gguf_config(fields, tensors, "deepseek_v3", score="sigmoid", normalise=normalise, bias=True)
    moe = config.moe
    if moe is not None and moe.groups > 1 and moe.experts // moe.groups < 2:
        raise fields.fail("expert_group_count", _LONELY)
    return config


FAMILY = Family(
    "deepseek_v3",
    from_hf,
    to_hf,
    (*_LAYERS, *_MODULES),
    from_gguf,
    (*latent.GGUF, Weight("blk.{i}.exp_probs_b.bias", ("layers.{i}.mlp.router.bias",))),
    latent.GGUF_OLDER,
    gguf_divisors=(),
)
