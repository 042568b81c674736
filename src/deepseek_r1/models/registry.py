"""From an architecture's name to its family, and from a checkpoint to its shape. No torch: headers are read quickly."""

from __future__ import annotations

from dataclasses import replace

from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.core.registry import Registry
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.families.rope_fields import with_divisors
from deepseek_r1.models.shapes import parameter_shapes

_SAME_NAME = "llama mistral mixtral qwen2 qwen3 qwen3_moe deepseek_v2 deepseek_v3".split()
_SAME_NAME += "phi3 olmo2 granite smollm3 glm4".split()

FAMILIES = Registry(
    "model architecture",
    {name: f"deepseek_r1.models.families.{name}:FAMILY" for name in _SAME_NAME}
    | {"gemma3_text": "deepseek_r1.models.families.gemma3:FAMILY"},
)

# GGUF's names of architectures, where they differ.
_GGUF_NAMES = {"qwen3moe": "qwen3_moe"}


def read_family(checkpoint: Checkpoint) -> Family:
    """The family a checkpoint belongs to. Raises `UnsupportedError` for one that isn't built here."""
    key = "general.architecture" if checkpoint.format == "gguf" else "model_type"
    name = checkpoint.metadata.get(key)
    if not isinstance(name, str):
        raise CheckpointError(checkpoint.path, key, "is missing", remedy="the file does not name its architecture")
    family: Family = FAMILIES.load(_GGUF_NAMES.get(name, name) if checkpoint.format == "gguf" else name)
    return family


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The shape of the model in `checkpoint`, read from its header alone."""
    family = read_family(checkpoint)
    tensors = set(checkpoint.tensors)
    if checkpoint.format == "safetensors":
        config = family.from_hf(Fields(checkpoint.path, checkpoint.metadata))
    else:
        config = _gguf_config(checkpoint, family, tensors)
    return _check_weights(checkpoint, family, config)


def _gguf_config(checkpoint: Checkpoint, family: Family, tensors: set[str]) -> ModelConfig:
    if family.from_gguf is None:
        raise UnsupportedError(
            f"{checkpoint.path}: GGUF files of the architecture {family.name!r} are not read yet",
            remedy="use the model's safetensors",
        )
    prefix = f"{checkpoint.metadata['general.architecture']}."
    values = dict(checkpoint.metadata)
    embedding = checkpoint.tensors.get("token_embd.weight")
    if values.get(f"{prefix}vocab_size") is None and embedding is not None:
        values[f"{prefix}vocab_size"] = embedding.shape[0]
    config = family.from_gguf(Fields(checkpoint.path, values, prefix), tensors)
    if "rope_freqs.weight" in tensors:
        divisors = tuple(checkpoint.read("rope_freqs.weight").tolist())
        if len(divisors) != config.ropes[0].dim // 2 or not all(d > 0 for d in divisors):
            raise CheckpointError(checkpoint.path, "rope_freqs.weight", "is not one divisor per frequency")
        config = with_divisors(config, divisors)
    return config


def _check_weights(checkpoint: Checkpoint, family: Family, config: ModelConfig) -> ModelConfig:
    """Every weight is there, before anything of the size that the configuration claims is built.

    Prediction modules are left out of many copies whose config.json still counts them: without a trace of their
    weights there are none.
    """
    experts = 0 if config.moe is None else config.moe.experts
    missing = []
    modules: set[bool] = set()
    for weight in family.weights(checkpoint.format, config, parameter_shapes(config)):
        for stored in weight.names(experts):
            there = stored in checkpoint.tensors
            if weight.ours[0].startswith("mtp."):
                modules.add(there)
            if not there:
                missing.append((stored, weight.ours[0].startswith("mtp.")))
    if modules == {False}:
        config = replace(config, mtp_layers=0)
        missing = [(stored, module) for stored, module in missing if not module]
    if missing:
        raise CheckpointError(checkpoint.path, missing[0][0], "tensor is missing")
    return config
