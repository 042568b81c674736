"""An open checkpoint: named tensors in mapped files, read one at a time as float32 or bfloat16 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deepseek_r1.core.errors import CapacityError, CheckpointError, UnsupportedError
from deepseek_r1.models.checkpoint import fp8
from deepseek_r1.models.checkpoint.gguf_quants import BLOCKS, GROUP, GROUPED, dequantise, round_to_bf16, take_apart
from deepseek_r1.models.checkpoint.mapped import MappedFile, quoted

Format = Literal["gguf", "safetensors"]

READABLE: dict[Format, tuple[str, ...]] = {"gguf": tuple(BLOCKS), "safetensors": ("F32", "F16", "BF16", fp8.DTYPE)}

# All sizes below are bounds that real checkpoints stay far under; they keep a hostile header's claims finite.
MAX_TENSORS = 100_000
MAX_ELEMENTS = 2**48

_CHUNK_ELEMENTS = 1 << 16  # float32 chunk of 256 KiB: stays in a core's cache; a multiple of every block size
_RELEASE_BYTES = 16 << 20  # mapped file pages held at most while one tensor is read

# (first element, its bytes and those that follow, where their values go) -> None
_Convert = Callable[[int, npt.NDArray[np.uint8], npt.NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor. `shape` is in torch's order (rows first), `nbytes` its size in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Stored(NamedTuple):
    """A tensor and where its bytes begin."""

    info: TensorInfo
    file: MappedFile
    offset: int


class QuantisedBlocks(NamedTuple):
    """A stored matrix (out, in) as it is: see `gguf_quants.take_apart`. Scales and minima are (out, in / group)."""

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    minima: npt.NDArray[np.float32] | None
    bits: int
    group: int


class Checkpoint:
    """Tensors and metadata of a checkpoint. Opening reads headers only; `read` reads one tensor.

    `metadata` holds GGUF's key-value pairs, or the parsed config.json beside safetensors ({} without one).
    Reading is thread-safe. Usable as a context manager.
    """

    def __init__(
        self,
        path: Path,
        format: Format,
        metadata: dict[str, Any],
        stored: Mapping[str, Stored],
        files: tuple[MappedFile, ...],
    ) -> None:
        self.path = path
        self.format: Format = format
        self.metadata = metadata
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({name: entry.info for name, entry in stored.items()})
        self._stored = stored
        self._files = files

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as a new C-contiguous float32 array; quantised formats are dequantised, FP8 with its block scales.

        Raises `CheckpointError` for an unknown name, a file that shrank, or FP8 whose scales or values make no sense,
        `UnsupportedError` for a storage type that this version cannot read, `CapacityError` if the result does not fit
        in memory.
        """
        out = self._allocate(self._entry(name).info, np.float32)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: npt.NDArray[np.float32]) -> None:
        """Like `read`, into `out`: C-contiguous float32 of the tensor's shape. No whole-tensor temporary is made."""
        entry = self._entry(name)
        _check_out(entry.info, out, np.dtype(np.float32))
        flat = out.reshape(-1)
        spans, convert = self._conversion(entry, fp8.LARGEST_F32)
        for start, stop, blocks in self._chunks(entry, spans):
            convert(start, blocks, flat[start:stop])

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows `start` to `stop` of a tensor, as `read` gives them: a large one need not stand whole in memory."""
        entry = self._entry(name)
        shape = entry.info.shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"tensor {quoted(name)} of shape {shape} has no rows {start} to {stop}")
        width = math.prod(shape[1:])
        first, last = start * width, stop * width
        if first % BLOCKS.get(entry.info.dtype, (1, 1))[0]:
            raise ValueError(f"tensor {quoted(name)}: row {start} begins inside a block")
        out = self._allocate(TensorInfo(name, (stop - start, *shape[1:]), "F32", 0), np.float32)
        flat = out.reshape(-1)
        spans, convert = self._conversion(entry, fp8.LARGEST_F32, first, last)
        for begin, end, blocks in self._chunks(entry, spans):
            convert(begin, blocks, flat[begin - first : end - first])
        return out

    def read_quantised(self, name: str) -> QuantisedBlocks | None:
        """A matrix stored as Q4_0, Q4_1, Q4_K or Q8_0, taken apart without loss; None for other types.

        Several matrices in one tensor come one below the other. Raises as `read` does.
        """
        entry = self._entry(name)
        info = entry.info
        if info.dtype not in GROUPED or len(info.shape) < 2:
            return None
        bits, has_minima = GROUPED[info.dtype]
        rows, columns = math.prod(info.shape[:-1]), info.shape[-1]
        codes = self._allocate(TensorInfo(info.name, (rows, columns), "U8", 0), np.uint8)
        groups = TensorInfo(info.name, (rows, columns // GROUP), "F32", 0)
        scales = self._allocate(groups, np.float32)
        minima = self._allocate(groups, np.float32) if has_minima else None
        size = codes.size
        spans = ((first, min(first + _CHUNK_ELEMENTS, size)) for first in range(0, size, _CHUNK_ELEMENTS))
        for first, last, blocks in self._chunks(entry, spans):
            place = slice(first // GROUP, last // GROUP)
            lows = None if minima is None else minima.reshape(-1)[place]
            take_apart(info.dtype, blocks, codes.reshape(-1)[first:last], scales.reshape(-1)[place], lows)
        return QuantisedBlocks(codes, scales, minima, bits, GROUP)

    def read_bf16_bits(self, name: str) -> npt.NDArray[np.uint16]:
        """The tensor as bfloat16 bits, rounded to nearest even from the float32 values.

        A tensor stored as BF16 comes as a read-only view of the mapped file: no copy, and its pages count as the
        file's. Raises as `read` does.
        """
        entry = self._entry(name)
        if entry.info.dtype == "BF16" and entry.offset % 2 == 0:
            entry.file.require(entry.offset + entry.info.nbytes, f"tensor {quoted(name)}")
            bits: npt.NDArray[np.uint16] = entry.file.view(entry.offset, entry.info.nbytes).view("<u2")
            return bits.reshape(entry.info.shape)
        out = self._allocate(entry.info, np.uint16)
        self.read_bf16_bits_into(name, out)
        return out

    def read_bf16_bits_into(self, name: str, out: npt.NDArray[np.uint16]) -> None:
        """Like `read_bf16_bits`, always copied into `out`: C-contiguous uint16 of the tensor's shape."""
        entry = self._entry(name)
        _check_out(entry.info, out, np.dtype(np.uint16))
        flat = out.reshape(-1)
        buffer = np.empty(min(_CHUNK_ELEMENTS, flat.size), np.float32)
        spans, convert = self._conversion(entry, fp8.LARGEST_BF16)
        for start, stop, blocks in self._chunks(entry, spans):
            if entry.info.dtype == "BF16":
                flat[start:stop] = blocks.reshape(-1).view("<u2")
                continue
            values = buffer[: stop - start]
            convert(start, blocks, values)
            round_to_bf16(values, flat[start:stop])

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in the order of their names."""
        return tuple(sorted(file.path for file in self._files))

    def close(self) -> None:
        """Unmap the files. Views handed out by `read_bf16_bits` stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> Stored:
        """The entry of a tensor that exists and can be read."""
        entry = self._stored.get(name)
        if entry is None:
            raise CheckpointError(
                self.path,
                f"tensor {quoted(name)}",
                "is not in the checkpoint",
                remedy="fetch the file again; a checkpoint of another architecture has other names",
            )
        readable = READABLE[self.format]
        if entry.info.dtype not in readable:
            raise UnsupportedError(
                f"{entry.file.path}: tensor {quoted(name)} is stored as {entry.info.dtype}, which cannot be read",
                remedy=f"use a file stored as one of {', '.join(readable)}",
            )
        return entry

    def _allocate(self, info: TensorInfo, dtype: type[Any]) -> npt.NDArray[Any]:
        try:
            return np.empty(info.shape, dtype)
        except MemoryError as error:
            raise CapacityError(
                f"{self.path}: no memory for tensor {quoted(info.name)} of shape {info.shape}",
                remedy="free memory or choose a smaller model",
            ) from error

    def _conversion(
        self, entry: Stored, largest: float, first: int = 0, last: int | None = None
    ) -> tuple[Iterable[tuple[int, int]], _Convert]:
        """Which of the elements from `first` to `last` to take at a time (first, last + 1), and what turns their bytes
        into float32. Both are at the ends of rows, `last` is the end of the tensor where it isn't given.
        """
        dtype = entry.info.dtype
        stop = math.prod(entry.info.shape) if last is None else last
        if dtype == fp8.DTYPE:
            matrix = self._block_scaled(entry, largest)
            return matrix.spans(_CHUNK_ELEMENTS, first, stop), matrix.dequantise
        spans = ((start, min(start + _CHUNK_ELEMENTS, stop)) for start in range(first, stop, _CHUNK_ELEMENTS))
        return spans, lambda start, blocks, out: dequantise(dtype, blocks, out)

    def _block_scaled(self, entry: Stored, largest: float) -> fp8.BlockScaled:
        """An FP8 tensor with its scales; with scales of 1 where neither they nor config.json are there to scale it."""
        name, shape, file = entry.info.name, entry.info.shape, entry.file
        if len(shape) != 2:
            raise file.error(f"tensor {quoted(name)} shape", f"{shape} is no matrix, and only those are stored in FP8")
        scaled = fp8.block_size(file.path.with_name("config.json"), self.metadata)
        block = scaled or fp8.DEFAULT_BLOCK
        grid = fp8.grid_shape(shape, block)
        scale = self._stored.get(name + fp8.SCALE_SUFFIX)
        if scale is None:
            if scaled:
                field = f"tensor {quoted(name + fp8.SCALE_SUFFIX)}"
                raise file.error(field, f"is missing, and config.json says that tensor {quoted(name)} is scaled by it")
            fp8.refuse_other_scales(file, name, self._stored)
            return fp8.BlockScaled(file, name, shape, np.ones(grid, np.float32), block, largest)
        info, field = scale.info, f"tensor {quoted(scale.info.name)}"
        if info.dtype not in fp8.SCALE_DTYPES:
            raise scale.file.error(f"{field} dtype", f"{info.dtype} is none of {', '.join(fp8.SCALE_DTYPES)}")
        if info.shape != grid:
            problem = f"{info.shape} is not {grid}, one scale for each {block[0]}x{block[1]} block of {shape}"
            raise scale.file.error(f"{field} shape", problem)
        scales = self.read(info.name)
        fp8.check_scales(scale.file, info.name, scales)
        return fp8.BlockScaled(file, name, shape, scales, block, largest)

    def _chunks(
        self, entry: Stored, spans: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """(first element, last element + 1, blocks as (blocks, bytes per block)), pages given back on the way."""
        elements, width = (1, 1) if entry.info.dtype == fp8.DTYPE else BLOCKS[entry.info.dtype]
        held, end = entry.offset, entry.offset + entry.info.nbytes
        for first, last in spans:
            start, stop = entry.offset + first // elements * width, entry.offset + last // elements * width
            entry.file.require(stop, f"tensor {quoted(entry.info.name)}")
            yield first, last, entry.file.view(start, stop - start).reshape(-1, width)
            if stop - held >= _RELEASE_BYTES or stop == end:
                entry.file.release(held, stop)
                held = stop


def _check_out(info: TensorInfo, out: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    if out.shape != info.shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(f"tensor {quoted(info.name)} needs a C-contiguous {dtype} array of shape {info.shape}")
