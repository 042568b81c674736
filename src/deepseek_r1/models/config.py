"""The one description of a decoder's shape, built by each family from its own metadata. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from deepseek_r1.core.errors import CheckpointError, UnsupportedError


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base frequency and scaling ("none", "linear", "llama3")."""

    theta: float
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    frequency_divisors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. `windows` holds each layer's attention window, None for full attention."""

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
    rope: RopeConfig
    tie_embeddings: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        block += self.qkv_bias * self.head_dim * (self.heads + 2 * self.kv_heads) + self.output_bias * self.hidden_size
        block += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size) + self.qk_norm * 2 * self.head_dim
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return tables + self.layers * block + self.hidden_size


class Fields:
    """Typed, bounded reads from a model's metadata; every complaint names the file and the field."""

    def __init__(self, path: str | PathLike[str], values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None

    def _bad(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(self.path, self.prefix + key, problem, remedy="the model's configuration is not usable")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 1 << 24) -> int:
        """The integer under `key`, between `least` and `most`."""
        value = self.values.get(self.prefix + key)
        if value is None:
            if default is None:
                raise self._bad(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._bad(key, f"is {value!r}, not an integer between {least} and {most}")
        return value

    def number(self, key: str, default: float | None = None, *, most: float = 1e12) -> float:
        """The positive number under `key`."""
        value = self.values.get(self.prefix + key)
        if value is None:
            if default is None:
                raise self._bad(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self._bad(key, f"is {value!r}, not a positive number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """The truth value under `key`."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._bad(key, f"is {value!r}, not true or false")
        return value

    def section(self, key: str) -> Fields:
        """The object under `key`, or an empty one."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return Fields(self.path, {})
        if not isinstance(value, dict):
            raise self._bad(key, f"is {value!r}, not an object")
        return Fields(self.path, value)

    def expect(self, key: str, supported: tuple[Any, ...]) -> None:
        """Raise `UnsupportedError` when `key` is given and is none of `supported`."""
        value = self.values.get(self.prefix + key)
        if value is not None and value not in supported:
            raise UnsupportedError(
                f"{self.path}: {self.prefix + key}: {value!r} is not supported",
                remedy=f"supported: {', '.join(map(repr, supported))}",
            )

    def divides(self, key: str, value: int, divisor: int) -> None:
        """Raise when `divisor` does not divide `value`."""
        if value % divisor:
            raise self._bad(key, f"{value} is not a multiple of {divisor}")
