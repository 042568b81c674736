"""What a family consists of: how it reads its configuration, and what its weights are called elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deepseek_r1.models.config import Fields, ModelConfig, RopeConfig


@dataclass(frozen=True)
class WeightName:
    """One weight's name here, in Hugging Face files and in GGUF files; `{i}` stands for the layer.

    `interleaved` names the config field that counts the heads of a projection whose rows llama-style GGUF files
    reorder for interleaved rope ("" where they don't).
    """

    ours: str
    hf: str
    gguf: str
    interleaved: str = ""

    def at(self, layer: int) -> WeightName:
        """The name with the layer filled in."""
        ours, hf, gguf = (name.replace("{i}", str(layer)) for name in (self.ours, self.hf, self.gguf))
        return WeightName(ours, hf, gguf, self.interleaved)


@dataclass(frozen=True)
class Family:
    """An architecture: builders of `ModelConfig` from either format, and its name table."""

    name: str
    from_hf: Callable[[Fields], ModelConfig]
    from_gguf: Callable[[Fields, set[str]], ModelConfig]
    names: tuple[WeightName, ...]

    def weights(self, config: ModelConfig) -> Iterator[WeightName]:
        """Every weight a model of this shape has, layers filled in."""
        for name in self.names:
            if "norm.weight" in name.ours and name.ours.split(".")[-2] in ("q_norm", "k_norm") and not config.qk_norm:
                continue
            if name.ours.endswith(".bias") and not self._has_bias(name.ours, config):
                continue
            if name.ours == "lm_head.weight" and config.tie_embeddings:
                continue
            if "{i}" in name.ours:
                yield from (name.at(i) for i in range(config.layers))
            else:
                yield name

    @staticmethod
    def _has_bias(name: str, config: ModelConfig) -> bool:
        if ".mlp." in name:
            return config.mlp_bias
        return config.output_bias if "o_proj" in name else config.qkv_bias


def hf_rope(fields: Fields) -> RopeConfig:
    """Rope from config.json, in the old spelling (rope_theta, rope_scaling) and the new one (rope_parameters)."""
    section = fields.section("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    theta = section.number("rope_theta") if "rope_theta" in section else fields.number("rope_theta", 10000.0)
    kind = "rope_type" if "rope_type" in section else "type"
    section.expect(kind, ("default", "linear", "llama3"))
    fields.expect("partial_rotary_factor", (1, 1.0))
    section.expect("partial_rotary_factor", (1, 1.0))
    scaling = section.values.get(kind, "default")
    if scaling == "default":
        return RopeConfig(theta)
    if scaling == "linear":
        return RopeConfig(theta, "linear", section.number("factor"))
    return RopeConfig(
        theta,
        "llama3",
        section.number("factor"),
        section.number("low_freq_factor"),
        section.number("high_freq_factor"),
        section.integer("original_max_position_embeddings"),
    )


def hf_windows(fields: Fields, layers: int, *, opt_in: bool) -> tuple[int | None, ...]:
    """Each layer's window from config.json. With `opt_in` (Qwen), `use_sliding_window` has to be true as well."""
    types = fields.values.get("layer_types")
    if "sliding_window" not in fields or (opt_in and not fields.boolean("use_sliding_window", False)):
        return (None,) * layers
    window = fields.integer("sliding_window")
    if opt_in and isinstance(types, list) and len(types) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = fields.integer("max_window_layers", 0, least=0) if opt_in else 0
    return tuple(window if layer >= first else None for layer in range(layers))
