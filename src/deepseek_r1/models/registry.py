"""From an architecture's name to its family, and from a checkpoint to its shape. No torch: headers are read quickly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.core.registry import Registry
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families.base import Family, Weight
from deepseek_r1.models.families.rope_fields import with_divisors
from deepseek_r1.models.shapes import parameter_shapes

_SAME_NAME = "llama mistral mixtral qwen2 qwen3 qwen3_moe deepseek_v2 deepseek_v3".split()
_SAME_NAME += "phi3 olmo2 granite smollm3 glm4 deepseek_r1".split()

FAMILIES = Registry(
    "model architecture",
    {name: f"deepseek_r1.models.families.{name}:FAMILY" for name in _SAME_NAME}
    | {"gemma3_text": "deepseek_r1.models.families.gemma3:FAMILY"},
)

# GGUF's names of architectures, where they differ from ours; see `_gguf_name` for those that two families share.
_GGUF_NAMES = {"qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")

_MAX_VALUES = 1 << 12  # of an array among an architecture's keys: the most layers that are read


def read_family(checkpoint: Checkpoint) -> Family:
    """The family a checkpoint belongs to. Raises `UnsupportedError` for one that isn't built here."""
    key = "general.architecture" if checkpoint.format == "gguf" else "model_type"
    name = checkpoint.metadata.get(key)
    if not isinstance(name, str):
        problem = "is missing" if name is None else "is not a name"
        raise CheckpointError(checkpoint.path, key, problem, remedy="it names the architecture: fetch the file again")
    gguf = checkpoint.format == "gguf"
    family: Family = FAMILIES.load(_gguf_name(name, checkpoint.metadata) if gguf else name)
    return family.for_file(checkpoint.tensors) if gguf else family


def _gguf_name(architecture: str, metadata: Mapping[str, Any]) -> str:
    """The family of a GGUF architecture: Mixtral is a "llama" with experts, V2 and V3 are both a "deepseek2"."""
    if architecture == "llama":
        experts = metadata.get("llama.expert_count")
        return "mixtral" if isinstance(experts, int) and experts > 0 else "llama"
    if architecture == "deepseek2":
        scores = metadata.get("deepseek2.expert_gating_func")
        return "deepseek_v3" if isinstance(scores, int) and scores == 2 else "deepseek_v2"
    return _GGUF_NAMES.get(architecture, architecture)


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The shape of the model in `checkpoint`, read from its header alone."""
    family = read_family(checkpoint)
    tensors = set(checkpoint.tensors)
    if checkpoint.format == "safetensors":
        config = family.from_hf(Fields(checkpoint.path, checkpoint.metadata))
    else:
        config = _gguf_config(checkpoint, family, tensors)
    weights = list(family.weights(checkpoint.format, config, parameter_shapes(config)))
    config = _check_weights(checkpoint, config, weights)
    _refuse_unread(checkpoint, family, config, weights)
    return config


def _gguf_config(checkpoint: Checkpoint, family: Family, tensors: set[str]) -> ModelConfig:
    if family.from_gguf is None:
        raise UnsupportedError(
            f"{checkpoint.path}: GGUF files of the architecture {family.name!r} are not read yet",
            remedy="use the model's safetensors",
        )
    prefix = f"{checkpoint.metadata['general.architecture']}."
    values = {
        key: _plain(checkpoint, key, value) for key, value in checkpoint.metadata.items() if key.startswith(prefix)
    }
    embedding = checkpoint.tensors.get("token_embd.weight")
    if values.get(f"{prefix}vocab_size") is None and embedding is not None:
        values[f"{prefix}vocab_size"] = embedding.shape[0]
    config = family.from_gguf(Fields(checkpoint.path, values, prefix), tensors)
    for name in family.gguf_divisors[:1]:
        if name in tensors:
            config = with_divisors(config, _divisors(checkpoint, name, config.ropes[0].dim // 2))
    return config


def _plain(checkpoint: Checkpoint, key: str, value: Any) -> Any:
    """A header's value, arrays as lists: at most one number per layer."""
    if not isinstance(value, np.ndarray):
        return value
    if value.size > _MAX_VALUES:
        raise CheckpointError(checkpoint.path, key, f"holds {value.size} values, at most {_MAX_VALUES} make sense")
    return value.tolist()


def _divisors(checkpoint: Checkpoint, name: str, count: int) -> tuple[float, ...]:
    if checkpoint.tensors[name].shape == (count,):
        divisors = tuple(checkpoint.read(name).tolist())
        if all(0 < divisor < math.inf for divisor in divisors):
            return divisors
    raise CheckpointError(checkpoint.path, name, "is not one positive divisor per frequency")


def _refuse_unread(checkpoint: Checkpoint, family: Family, config: ModelConfig, weights: list[Weight]) -> None:
    """Every tensor has its place: one that is left over would have changed what the model computes.

    Of safetensors the weights and biases of the layers are looked at. Tables stand in many files twice, and what lies
    behind the last layer belongs to prediction modules.
    """
    gguf = checkpoint.format == "gguf"
    experts = 0 if config.moe is None else config.moe.experts
    read = set(family.gguf_divisors)
    for weight in weights:
        read.update(weight.names(experts))
    for name in checkpoint.tensors:
        if name not in read and (gguf or _in_a_layer(name, config.layers)):
            raise UnsupportedError(
                f"{checkpoint.path}: {name}: {family.name!r} has no place for this tensor",
                remedy="use the model's safetensors, or convert the model again with a current converter"
                if gguf
                else "the model differs from its published family in a way that isn't built here",
            )


def _in_a_layer(name: str, layers: int) -> bool:
    """Whether a stored name is that of a weight or a bias of one of the first `layers` layers."""
    found = _LAYER.match(name)
    return found is not None and int(found[1]) < layers and name.endswith((".weight", ".bias"))


def _check_weights(checkpoint: Checkpoint, config: ModelConfig, weights: list[Weight]) -> ModelConfig:
    """Every weight is there, before anything of the size that the configuration claims is built.

    Prediction modules are left out of many copies whose config.json still counts them: without a trace of their
    weights there are none.
    """
    experts = 0 if config.moe is None else config.moe.experts
    absent: str | None = None  # the first tensor of a prediction module that isn't there
    present = False
    for weight in weights:
        for stored in weight.names(experts):
            there = stored in checkpoint.tensors
            if weight.ours[0].startswith("mtp."):
                present |= there
                absent = absent or (None if there else stored)
            elif not there:
                raise CheckpointError(checkpoint.path, stored, "tensor is missing")
    if absent is not None and present:
        raise CheckpointError(checkpoint.path, absent, "tensor is missing")
    return config if absent is None else replace(config, mtp_layers=0)
