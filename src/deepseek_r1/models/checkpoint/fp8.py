"""FP8 E4M3 matrices with one scale per block of rows and columns, as DeepSeek-V3 and R1 store their weights.

Format: https://github.com/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md, E4M3: https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.models.checkpoint.mapped import MappedFile, quoted

DTYPE = "F8_E4M3"
SCALE_SUFFIX = "_scale_inv"  # the scales of `X.weight` are `X.weight_scale_inv`
SCALE_DTYPES = ("F32", "BF16", "F16")
DEFAULT_BLOCK = (128, 128)
MAX_BLOCK = 1 << 16  # rows or columns; a chunk of a long row holds at least one block

LARGEST_F32 = float(np.finfo(np.float32).max)
LARGEST_BF16 = float(np.array(0x7F7F7FFF, np.uint32).view(np.float32))  # the next float32 rounds to infinity

# One scale per tensor, row or channel, as other programs write them; a leading dot replaces ".weight".
_OTHER_SCALES = ("_scale", ".scale", ".weight_scale", ".scale_weight", "_inv_scale", ".weight_packed")

_LARGEST_E4M3 = 448.0
_NAN_CODE = 0x7F  # with either sign; E4M3 has no infinities


def _e4m3_values() -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes: a sign, 4 bits of exponent with bias 7, 3 bits of fraction."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    magnitude = np.ldexp(np.where(exponent > 0, 8.0 + fraction, fraction), np.maximum(exponent, 1) - 10)
    magnitude[codes & _NAN_CODE == _NAN_CODE] = np.nan
    values: npt.NDArray[np.float32] = np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)
    values.flags.writeable = False
    return values


E4M3_VALUES = _e4m3_values()


def refuse_other_scales(file: MappedFile, name: str, names: Container[str]) -> None:
    """Raise `UnsupportedError` where an FP8 tensor has scales of another layout beside it: without them it is wrong."""
    for suffix in _OTHER_SCALES:
        scale = (name.removesuffix(".weight") if suffix.startswith(".") else name) + suffix
        if scale in names:
            raise UnsupportedError(
                f"{file.path}: tensor {quoted(name)} is FP8 scaled by {quoted(scale)}, a layout that isn't read",
                remedy=f"use a checkpoint with scales of blocks (*{SCALE_SUFFIX}), or one in BF16",
            )


def block_size(path: Path, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(rows, columns) of the blocks that share a scale, None where `config` does not say that weights are scaled.

    `config` is the parsed config.json at `path`. Raises `CheckpointError` for a quantization_config that makes no
    sense, `UnsupportedError` for another method or number format than FP8 E4M3.
    """
    settings = config.get("quantization_config")
    if settings is None:
        if config.get("compression_config") is not None:
            raise UnsupportedError(
                f"{path}: compression_config: weights compressed by compressed-tensors are not read",
                remedy=f"use a checkpoint stored as BF16, or as {DTYPE} with scales of blocks",
            )
        return None
    if not isinstance(settings, dict):
        raise _config_error(path, "", "is not an object")
    for key, default, supported in (
        ("quant_method", None, ("fp8",)),
        ("fmt", "e4m3", ("e4m3", "float8_e4m3fn")),
    ):
        value = settings.get(key, default)
        if not isinstance(value, str):
            raise _config_error(path, f".{key}", "is missing or no string")
        if value not in supported:
            raise UnsupportedError(
                f"{path}: quantization_config.{key}: {quoted(value)} is not supported",
                remedy=f"supported for weights stored as {DTYPE}: {', '.join(map(repr, supported))}",
            )
    sizes = settings.get("weight_block_size")
    if sizes is None:
        return DEFAULT_BLOCK  # a scale of another layout then fails by its shape or its name
    # bool is a subclass of int, and true is no size
    if not isinstance(sizes, list) or [type(size) for size in sizes] != [int, int]:
        raise _config_error(path, ".weight_block_size", "is not a list of two integers")
    rows, columns = sizes
    if not (1 <= rows <= MAX_BLOCK and 1 <= columns <= MAX_BLOCK):
        raise _config_error(path, ".weight_block_size", f"is not two sizes between 1 and {MAX_BLOCK}")
    return rows, columns


def grid_shape(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks cover a matrix of `shape` in each direction; those at the end may be cut off."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


class BlockScaled:
    """A stored (rows, columns) matrix of E4M3 codes with its `scales`.

    A value is code * scale, rounded to float32 once; one whose magnitude is beyond `largest` is an error. The caller
    has checked that `scales` has `grid_shape` and passes `check_scales`.
    """

    def __init__(
        self,
        file: MappedFile,
        name: str,
        shape: tuple[int, int],
        scales: npt.NDArray[np.float32],
        block: tuple[int, int],
        largest: float,
    ) -> None:
        self._file = file
        self._name = name
        self._columns = shape[1]
        self._scales = scales
        self._block = block
        self._largest = largest
        self._can_overflow = float(scales.max(initial=0.0)) * _LARGEST_E4M3 > largest

    def spans(self, elements: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of pieces of at most `elements` >= MAX_BLOCK elements, in the order of the file.

        They cover the elements from `first` to `last`, both at the ends of rows. Each is some whole rows, or, of a row
        that is longer, some whole blocks.
        """
        if self._columns <= elements:
            step = elements // max(self._columns, 1) * self._columns
            for start in range(first, last, step) if step else ():
                yield start, min(start + step, last)
            return
        step = elements // self._block[1] * self._block[1]
        for row in range(first, last, self._columns):
            for start in range(row, row + self._columns, step):
                yield start, min(start + step, row + self._columns)

    def dequantise(self, start: int, codes: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Write the values of one of `spans`, which begins at element `start`, to `out`, of `codes`' size.

        Raises `CheckpointError` for a code that is NaN and for a value beyond `largest`.
        """
        codes = codes.reshape(-1)
        # One maximum costs less than a comparison with each element.
        if (codes & _NAN_CODE).max() == _NAN_CODE:
            raise self._error(start + int((codes & _NAN_CODE == _NAN_CODE).argmax()), "is NaN")
        np.take(E4M3_VALUES, codes, out=out, mode="clip")  # "clip" spares a copy of `out`
        values = out.reshape(-1, min(self._columns, out.size))  # (rows, columns), or (1, part of a row)
        rows, columns = values.shape
        top, left = divmod(start, self._columns)
        high, wide = self._block
        scales = self._scales[np.arange(top, top + rows) // high, left // wide : -(-(left + columns) // wide)]
        whole = columns // wide
        with np.errstate(over="ignore"):
            blocks = values[:, : whole * wide].reshape(rows, whole, wide)  # splitting an axis gives a view
            blocks *= scales[:, :whole, None]
            values[:, whole * wide :] *= scales[:, whole:]
        if self._can_overflow:
            within = np.abs(out) <= self._largest
            if not within.all():
                raise self._error(start + int(within.argmin()), f"times its scale is beyond {self._largest:.3g}")

    def _error(self, element: int, problem: str) -> CheckpointError:
        row, column = divmod(element, self._columns)
        return self._file.error(f"tensor {quoted(self._name)}", f"the value at row {row}, column {column} {problem}")


def check_scales(file: MappedFile, name: str, scales: npt.NDArray[np.float32]) -> None:
    """Raise `CheckpointError` unless all of the (rows, columns) `scales` are positive and finite."""
    good = (scales > 0) & np.isfinite(scales)
    if not good.all():
        row, column = divmod(int(good.argmin()), scales.shape[1])
        raise file.error(
            f"tensor {quoted(name)}", f"the scale of block ({row}, {column}) is {scales[row, column]}, not positive"
        )


def _config_error(path: Path, field: str, problem: str) -> CheckpointError:
    return CheckpointError(
        path, f"quantization_config{field}", problem, remedy="correct that field, or fetch the file again"
    )
