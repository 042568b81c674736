"""Which number format each class of operators computes in: one choice for all, or a mixture by name."""

from __future__ import annotations

from typing import Literal

from deepseek_r1.config.base import Config, option
from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.core.registry import nearest

Dtype = Literal["fp32", "bf16"]

OPERATOR_CLASSES = ("embedding", "linear", "norm", "rope", "attention", "activation", "lm_head", "kv_cache")
"""The operator classes that a mixture can name."""

PRECISION_MODES = ("fp32", "bf16", "mixed")
_PLANNED = ("fp16", "fp8", "int8", "int4", "auto")
_SENSITIVE = ("norm", "rope")  # cheap, and the first to lose accuracy: fp32 in a mixture unless named
_AVAILABLE = "available: fp32, bf16"


class DeepSeekConfig(Config):
    """Precision of the model's operators.

    In the modes "fp32" and "bf16" every operator class computes in that format. In mode "mixed" the classes named in
    `fp32_ops` and `bf16_ops` do as named; of the others, norm and rope compute in fp32 and the rest in bf16.
    Raises `ConfigError` for unknown or contradicting names, `UnsupportedError` for formats that are not there yet.
    """

    precision_mode: str = option(
        default="fp32", help="number format of all operators, or 'mixed'", metavar="fp32|bf16|mixed"
    )
    fp32_ops: tuple[str, ...] = option(default=(), help="operator classes that compute in fp32 (mode mixed)")
    bf16_ops: tuple[str, ...] = option(default=(), help="operator classes that compute in bf16 (mode mixed)")
    int8_ops: tuple[str, ...] = option(default=(), help="operator classes that compute in int8 (not available yet)")

    def check(self) -> None:
        """Refuse formats that are not there, unknown classes, and classes named twice."""
        _check_mode(self.precision_mode)
        if self.int8_ops:
            raise UnsupportedError("int8_ops: int8 is not available yet", remedy=_AVAILABLE)
        if self.precision_mode != "mixed" and (self.fp32_ops or self.bf16_ops):
            raise ConfigError(
                f"fp32_ops and bf16_ops have no meaning in precision_mode={self.precision_mode!r}",
                remedy="use precision_mode='mixed'",
            )
        seen: set[str] = set()
        for name in (*self.fp32_ops, *self.bf16_ops):
            if name not in OPERATOR_CLASSES:
                raise ConfigError(
                    f"unknown operator class {name!r}{nearest(name, list(OPERATOR_CLASSES))}",
                    remedy=f"operator classes: {', '.join(OPERATOR_CLASSES)}",
                )
            if name in seen:
                raise ConfigError(f"operator class {name!r} is named twice", remedy="name it once, in one list")
            seen.add(name)

    def dtype_of(self, operator_class: str) -> Dtype:
        """The format in which `operator_class` computes. Raises `ConfigError` for an unknown class."""
        if operator_class not in OPERATOR_CLASSES:
            raise ConfigError(
                f"unknown operator class {operator_class!r}{nearest(operator_class, list(OPERATOR_CLASSES))}",
                remedy=f"operator classes: {', '.join(OPERATOR_CLASSES)}",
            )
        if self.precision_mode == "fp32" or operator_class in self.fp32_ops:
            return "fp32"
        if self.precision_mode == "bf16" or operator_class in self.bf16_ops:
            return "bf16"
        return "fp32" if operator_class in _SENSITIVE else "bf16"

    @property
    def name(self) -> str:
        """A stable text for cache keys, which `parse_precision` reads back: every class of a mixture is named."""
        if self.precision_mode != "mixed":
            return self.precision_mode
        return "mixed:" + ",".join(f"{name}={self.dtype_of(name)}" for name in OPERATOR_CLASSES)


def parse_precision(text: str) -> DeepSeekConfig:
    """Read "fp32", "bf16", "mixed" or "mixed:attention=bf16,norm=fp32". Raises `ConfigError` or `UnsupportedError`."""
    mode, colon, rest = text.partition(":")
    _check_mode(mode)
    if not colon:
        return DeepSeekConfig(precision_mode=mode)
    if mode != "mixed":
        raise ConfigError(
            f"precision {text!r}: only 'mixed' takes operator classes", remedy="write mixed:attention=bf16"
        )
    named: dict[str, list[str]] = {"fp32": [], "bf16": [], "int8": []}
    for part in rest.split(","):
        name, _, dtype = (word.strip() for word in part.partition("="))
        if dtype not in named:
            _check_mode(dtype)
            raise ConfigError(f"precision {text!r}: {part!r} is not class=format", remedy="write mixed:attention=bf16")
        named[dtype].append(name)
    return DeepSeekConfig(mode, tuple(named["fp32"]), tuple(named["bf16"]), tuple(named["int8"]))


def _check_mode(mode: str) -> None:
    if mode in _PLANNED:
        raise UnsupportedError(f"precision {mode!r} is not available yet", remedy=_AVAILABLE)
    if mode not in PRECISION_MODES:
        raise ConfigError(
            f"unknown precision {mode!r}{nearest(mode, list(PRECISION_MODES))}",
            remedy=f"precisions: {', '.join(PRECISION_MODES)}",
        )
