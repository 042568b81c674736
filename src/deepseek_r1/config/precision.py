"""Which number format each class of operators computes in: one choice for all, or a mixture by name."""

from __future__ import annotations

from typing import Literal

from deepseek_r1.config.base import Config, option
from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.core.registry import nearest

Dtype = Literal["fp32", "bf16", "int8", "int4"]

OPERATOR_CLASSES = ("embedding", "linear", "norm", "rope", "attention", "activation", "lm_head", "kv_cache")
"""The operator classes that a mixture can name."""

PRECISION_MODES = ("fp32", "bf16", "int8", "int4", "mixed", "auto")
PRECISION_METAVAR = "|".join(PRECISION_MODES)
PRECISION_HELP = (
    "number format of the model's operators: fp32, bf16, int8 or int4 weights, auto (the one nearest to the file's), "
    "one of these with exceptions (auto:kv_cache=int8), or mixed:CLASS=FORMAT,..."
)
"""The words of the option wherever a command takes a precision."""

QUANTISABLE = ("embedding", "linear", "lm_head")
"""The operator classes with weights that can be kept in 8 or 4 bits. Keys and values can be kept in 8."""

QUANTISED_KV_CACHE: Dtype = "bf16"
"""The format of keys and values in the modes "int8" and "int4"."""

_PLANNED = ("fp16", "fp8")
_SENSITIVE = ("norm", "rope")  # cheap, and the first to lose accuracy: fp32 in a mixture unless named
_AVAILABLE = f"available: {', '.join(PRECISION_MODES)}"


class DeepSeekConfig(Config):
    """Precision of the model's operators.

    In the modes "fp32" and "bf16" every operator class computes in that format. In the modes "int8" and "int4" the
    weights of linears, of experts, of the embedding and of the output layer are kept in 8 or 4 bits, keys and values in
    bf16, and the rest computes in fp32: routers and the up-projections of latent attention too, with weights in fp32.
    "int4" keeps a file's own 4- and 8-bit blocks as they are, and tables that come without such blocks in 8 bits.
    "auto" is resolved to the mode nearest to the file's own form when a model is opened. In mode "mixed" norm and rope
    compute in fp32 and the rest in bf16. The classes named in `fp32_ops`, `bf16_ops`, `int8_ops` and `int4_ops` are
    exceptions from the mode. Keys and values in int8 ("kv_cache") have a scale for each head of a token.
    Raises `ConfigError` for unknown or contradicting names, `UnsupportedError` for formats that are not there yet.
    """

    precision_mode: str = option(
        default="fp32", help="number format of all operators, 'auto', or 'mixed'", metavar=PRECISION_METAVAR
    )
    fp32_ops: tuple[str, ...] = option(default=(), help="operator classes that compute in fp32 (mode mixed)")
    bf16_ops: tuple[str, ...] = option(default=(), help="operator classes that compute in bf16 (mode mixed)")
    int8_ops: tuple[str, ...] = option(
        default=(), help="operator classes whose weights are kept in 8 bits (mode mixed)"
    )
    int4_ops: tuple[str, ...] = option(
        default=(), help="operator classes whose weights are kept in 4 bits (mode mixed)"
    )

    def check(self) -> None:
        """Refuse formats that are not there, unknown classes, and classes named twice."""
        _check_mode(self.precision_mode)
        named = [(name, f"int{bits}") for bits in (8, 4) for name in getattr(self, f"int{bits}_ops")]
        seen: set[str] = set()
        for name in (*self.fp32_ops, *self.bf16_ops, *self.int8_ops, *self.int4_ops):
            _check_class(name)
            if name in seen:
                raise ConfigError(f"operator class {name!r} is named twice", remedy="name it once, in one list")
            seen.add(name)
        for name, dtype in named:
            if name not in QUANTISABLE and (name, dtype) != ("kv_cache", "int8"):
                raise UnsupportedError(
                    f"operator class {name!r} does not compute in {dtype}",
                    remedy=f"classes with weights in 8 or 4 bits: {', '.join(QUANTISABLE)}; in 8 bits: kv_cache too",
                )

    def dtype_of(self, operator_class: str) -> Dtype:
        """The format in which `operator_class` computes. Raises `ConfigError` for an unknown class."""
        _check_class(operator_class)
        if operator_class in self.named:
            return self.named[operator_class]
        match self.precision_mode:
            case "auto":
                raise ConfigError("precision 'auto' has no formats", remedy="it is resolved when a model is opened")
            case "fp32" | "bf16" as dtype:
                return dtype
            case "int8" | "int4" as dtype if operator_class in QUANTISABLE:
                return dtype
            case "int8" | "int4":
                return QUANTISED_KV_CACHE if operator_class == "kv_cache" else "fp32"
        return "fp32" if operator_class in _SENSITIVE else "bf16"

    @property
    def named(self) -> dict[str, Dtype]:
        """The classes that are named, with their formats."""
        formats: dict[Dtype, tuple[str, ...]]
        formats = {"fp32": self.fp32_ops, "bf16": self.bf16_ops, "int8": self.int8_ops, "int4": self.int4_ops}
        return {name: dtype for dtype, classes in formats.items() for name in classes}

    @property
    def name(self) -> str:
        """A stable text for cache keys, that `parse_precision` reads: classes of a mixture, exceptions of a mode."""
        mode = self.precision_mode
        formats: dict[str, str] = {name: self.named[name] for name in OPERATOR_CLASSES if name in self.named}
        if mode == "mixed":
            formats = {name: self.dtype_of(name) for name in OPERATOR_CLASSES}
        elif mode != "auto":
            plain = DeepSeekConfig(mode)
            formats = {name: dtype for name, dtype in formats.items() if dtype != plain.dtype_of(name)}
        return mode + ":" * bool(formats) + ",".join(f"{name}={dtype}" for name, dtype in formats.items())


def parse_precision(text: str) -> DeepSeekConfig:
    """Read a mode such as "int8", or one with exceptions: "int4:kv_cache=int8", "mixed:attention=bf16,linear=int8".

    Raises `ConfigError` or `UnsupportedError`.
    """
    mode, colon, rest = text.partition(":")
    _check_mode(mode)
    if not colon:
        return DeepSeekConfig(precision_mode=mode)
    formats: dict[str, list[str]] = {"fp32": [], "bf16": [], "int8": [], "int4": []}
    for part in rest.split(","):
        name, _, dtype = (word.strip() for word in part.partition("="))
        if dtype not in formats:
            _check_mode(dtype)
            raise ConfigError(f"precision {text!r}: {part!r} is not class=format", remedy="write mixed:attention=bf16")
        formats[dtype].append(name)
    return DeepSeekConfig(mode, *(tuple(classes) for classes in formats.values()))


def _check_class(name: str) -> None:
    if name not in OPERATOR_CLASSES:
        raise ConfigError(
            f"unknown operator class {name!r}{nearest(name, list(OPERATOR_CLASSES))}",
            remedy=f"operator classes: {', '.join(OPERATOR_CLASSES)}",
        )


def _check_mode(mode: str) -> None:
    if mode in _PLANNED:
        raise UnsupportedError(f"precision {mode!r} is not available yet", remedy=_AVAILABLE)
    if mode not in PRECISION_MODES:
        raise ConfigError(
            f"unknown precision {mode!r}{nearest(mode, list(PRECISION_MODES))}",
            remedy=f"precisions: {', '.join(PRECISION_MODES)}",
        )
