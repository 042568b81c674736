"""The one description of a decoder's shape, built by each family from its own metadata. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from deepseek_r1.core.errors import CheckpointError, UnsupportedError


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base frequency and scaling ("none", "linear", "llama3", "yarn").

    `dim` is the number of columns that are rotated. `attention_factor` multiplies cos and sin; `mscale_all_dim` is
    DeepSeek's part of YaRN that goes into the softmax scale instead (kept here so that it can be written back).
    """

    theta: float
    dim: int
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    frequency_divisors: tuple[float, ...] | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2): ranks of the latents and widths of one head's parts.

    `q_rank` is None where queries are projected directly. `norm_eps` is that of the norms on the latents, which the
    reference does not take from the other norms.
    """

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts. `layers` says of each layer whether it has experts (else it has the dense MLP).

    `score` is how router logits become scores ("softmax" or "sigmoid"); `normalise` divides the chosen scores by their
    sum and `scale` multiplies them. With `groups` > 1 only the best `active_groups` of them may be chosen from, judged
    by their best expert, or with `bias` (DeepSeek-V3's balancing without an auxiliary loss) by their best two.
    """

    experts: int
    active: int
    hidden_size: int
    shared_hidden_size: int
    layers: tuple[bool, ...]
    score: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    active_groups: int = 1
    bias: bool = False


@dataclass(frozen=True)
class DeltaConfig:
    """Gated-delta linear attention (Yang et al. 2024): heads and widths of its state, taps of its convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4


@dataclass(frozen=True)
class RingConfig:
    """A sliding window and global tokens: what `window` tokens back is given up but for one in `global_every`."""

    window: int = 512
    global_every: int | None = 64


MIXERS = ("attention", "ring", "delta")
"""What may mix tokens in a layer: attention over everything (or over `windows`), a ring, or the gated delta rule."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder, and the options in which families differ.

    `windows` holds each layer's attention window, None for full attention. `layer_ropes` holds each layer's index into
    `ropes`, None for a layer without rope. `norms` says where a layer's norms stand: before attention and MLP ("pre"),
    after them ("post"), or both ("sandwich"). `qk_norm` is "head" (a norm on each head of q and k), "full" (one over
    all heads) or None. `attention_scale` multiplies the scores (None: head_dim ** -0.5). `mixers` names each
    layer's way to mix tokens (see `MIXERS`; empty: attention in all). `mtp_layers` counts the multi-token prediction
    modules behind the last layer.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float
    ropes: tuple[RopeConfig, ...]
    layer_ropes: tuple[int | None, ...]
    tie_embeddings: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None
    norms: str = "pre"
    activation: str = "silu"
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    mla: MLAConfig | None = None
    moe: MoEConfig | None = None
    mtp_layers: int = 0
    mixers: tuple[str, ...] = ()
    ring: RingConfig | None = None
    delta: DeltaConfig | None = None

    def mixer(self, layer: int) -> str:
        """What mixes tokens in this layer; prediction modules behind the last layer have attention."""
        return self.mixers[layer] if layer < len(self.mixers) else "attention"

    def has_experts(self, layer: int) -> bool:
        """Whether this layer's MLP is a mixture of experts; prediction modules behind the last layer are as it is."""
        return self.moe is not None and self.moe.layers[min(layer, self.layers - 1)]


class Fields:
    """Typed, bounded reads from a model's metadata; every complaint names the file and the field."""

    def __init__(self, path: str | PathLike[str], values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None

    def _bad(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(
            self.path, self.prefix + key, problem, remedy="correct that field, or fetch the file again"
        )

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 1 << 24) -> int:
        """The integer under `key`, between `least` and `most`."""
        value = self.values.get(self.prefix + key)
        if value is None:
            if default is None:
                raise self._bad(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._bad(key, f"is {_shown(value)}, not an integer between {least} and {most}")
        return value

    def number(self, key: str, default: float | None = None, *, most: float = 1e12) -> float:
        """The positive number under `key`."""
        value = self.values.get(self.prefix + key)
        if value is None:
            if default is None:
                raise self._bad(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self._bad(key, f"is {_shown(value)}, not a positive number")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """The list of `count` positive numbers under `key`."""
        value = self.values.get(self.prefix + key)
        if not isinstance(value, list) or len(value) != count:
            raise self._bad(key, f"is not a list of {count} numbers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int | float) or not 0 < item <= 1e12:
                raise self._bad(key, f"holds {_shown(item)}, not a positive number")
        return tuple(map(float, value))

    def items(self, key: str, count: int, default: Any) -> list[Any]:
        """The list of `count` items under `key`; `default` repeated where there is none."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return [default] * count
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self._bad(key, f"is not a list of {count} items")
        return list(value)

    def choices(self, key: str, allowed: tuple[Any, ...], count: int, default: Any = None) -> list[Any]:
        """The list of `count` items under `key`, each one of `allowed`."""
        values = self.items(key, count, default)
        for value in values:
            if not any(value is other or (type(value) is type(other) and value == other) for other in allowed):
                raise self._bad(key, f"holds {_shown(value)}, none of {', '.join(map(repr, allowed))}")
        return values

    def choice(self, key: str, allowed: tuple[Any, ...]) -> Any:
        """The value under `key`, one of `allowed`; the first of them where there is none."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return allowed[0]
        if value not in allowed:
            raise self._bad(key, f"is {_shown(value)}, none of {', '.join(map(repr, allowed))}")
        return value

    def sections(self, key: str, most: int = 16) -> list[Fields]:
        """The list of 1 to `most` objects under `key`."""
        value = self.values.get(self.prefix + key)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= most:
            raise self._bad(key, f"is not a list of 1 to {most} objects")
        if not all(isinstance(item, dict) for item in value):
            raise self._bad(key, "holds something that is no object")
        return [Fields(self.path, item) for item in value]

    def boolean(self, key: str, default: bool) -> bool:
        """The truth value under `key`."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._bad(key, f"is {_shown(value)}, not true or false")
        return value

    def section(self, key: str) -> Fields:
        """The object under `key`, or an empty one."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return Fields(self.path, {})
        if not isinstance(value, dict):
            raise self._bad(key, f"is {_shown(value)}, not an object")
        return Fields(self.path, value)

    def expect(self, key: str, supported: tuple[Any, ...]) -> None:
        """Raise `UnsupportedError` when `key` is given and is none of `supported`."""
        value = self.values.get(self.prefix + key)
        if value is not None and value not in supported:
            raise UnsupportedError(
                f"{self.path}: {self.prefix + key}: {_shown(value)} is not supported",
                remedy=f"supported: {', '.join(map(repr, supported))}",
            )

    def fail(self, key: str, problem: str) -> CheckpointError:
        """The error to raise about `key`, for rules that go beyond one field."""
        return self._bad(key, problem)

    def divides(self, key: str, value: int, divisor: int) -> None:
        """Raise when `divisor` does not divide `value`."""
        if value % divisor:
            raise self._bad(key, f"{value} is not a multiple of {divisor}")


def _shown(value: Any) -> str:
    """A value of a file as an error shows it: cut when it is long."""
    if isinstance(value, list | str):
        value = value[:80]
    elif isinstance(value, dict):
        value = dict(list(value.items())[:8])
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
