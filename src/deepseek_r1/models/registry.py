"""Architecture name -> family, and the configuration of a checkpoint. No torch, so that headers are read quickly."""

from __future__ import annotations

from dataclasses import replace

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.core.registry import Registry
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families.base import Family, WeightName

FAMILIES = Registry(
    "model architecture",
    {name: f"deepseek_r1.models.families.{name}:FAMILY" for name in ("llama", "mistral", "qwen2", "qwen3")},
)


def read_family(checkpoint: Checkpoint) -> Family:
    """The family a checkpoint belongs to. Raises `UnsupportedError` for one that isn't built here."""
    key = "general.architecture" if checkpoint.format == "gguf" else "model_type"
    name = checkpoint.metadata.get(key)
    if not isinstance(name, str):
        raise CheckpointError(checkpoint.path, key, "is missing", remedy="the file does not name its architecture")
    family: Family = FAMILIES.load(name)
    return family


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The shape of the model in `checkpoint`, read from its header alone."""
    family = read_family(checkpoint)
    tensors = set(checkpoint.tensors)
    if checkpoint.format == "safetensors":
        config = family.from_hf(Fields(checkpoint.path, checkpoint.metadata))
    else:
        prefix = f"{family.name}."
        values = dict(checkpoint.metadata)
        embedding = checkpoint.tensors.get("token_embd.weight")
        if values.get(f"{prefix}vocab_size") is None and embedding is not None:
            values[f"{prefix}vocab_size"] = embedding.shape[0]
        config = family.from_gguf(Fields(checkpoint.path, values, prefix), tensors)
        if "rope_freqs.weight" in tensors:
            divisors = tuple(checkpoint.read("rope_freqs.weight").tolist())
            if len(divisors) != config.head_dim // 2 or not all(d > 0 for d in divisors):
                raise CheckpointError(checkpoint.path, "rope_freqs.weight", "is not one divisor per frequency")
            config = replace(config, rope=replace(config.rope, frequency_divisors=divisors))
    _check_weights(checkpoint, family, config)
    return config


def stored_name(checkpoint: Checkpoint, name: WeightName) -> str:
    """What `checkpoint` calls this weight."""
    return name.gguf if checkpoint.format == "gguf" else name.hf


def _check_weights(checkpoint: Checkpoint, family: Family, config: ModelConfig) -> None:
    """Every weight is there, before anything of the size that the configuration claims is built."""
    for name in family.weights(config):
        stored = stored_name(checkpoint, name)
        if stored not in checkpoint.tensors:
            raise CheckpointError(checkpoint.path, stored, "tensor is missing")
