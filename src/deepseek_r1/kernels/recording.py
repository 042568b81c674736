"""Steps recorded once and run again: what dispatch costs in Python is paid once per shape, not once per token.

While a recording is made, native kernels run as always and are noted down with their addresses. Replaying runs them
again over the same memory, where the inputs have been changed. Nothing else of the step is replayed, so a recording in
which torch computed anything itself is not used.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from deepseek_r1.kernels import pages

_LEAST = 4096
_HUGE = 1 << 20  # from here on huge pages are asked for: tiles of a matrix lie on too many small ones
_IDLE = 2  # references to a block's storage while nobody has a piece of it: the block's tensor, and the arena's handle


class Arena:
    """Memory for what is made within a step. A block is free again when no tensor looks into it any more.

    Recordings share it: only one runs at a time, and nothing in it has to outlast a step.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[int, Tensor, Any]] = []
        self._starts: dict[int, Tensor] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in a free block."""
        needed = max(math.prod(shape) * dtype.itemsize, 1)
        for size, block, storage in self._blocks:
            if needed <= size <= 4 * max(needed, _LEAST) and torch._C._storage_Use_Count(storage._cdata) == _IDLE:
                return _view(block, 0, shape, dtype)
        size = max(_LEAST, 1 << (needed - 1).bit_length())
        with _disable_current_modes():  # the recording's own memory is nobody's computation
            block = pages.huge(size) if size >= _HUGE else torch.empty(size, dtype=torch.uint8)
        self._blocks.append((size, block, block.untyped_storage()))
        self._starts[block.data_ptr()] = block
        return _view(block, 0, shape, dtype)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in one of the blocks."""
        return _start(tensor) in self._starts

    def place(self, tensor: Tensor) -> tuple[Tensor, int, tuple[int, ...], torch.dtype] | None:
        """(block, first byte, shape, dtype) of a contiguous tensor in a block; None for any other."""
        block = self._starts.get(_start(tensor))
        if block is None or not tensor.is_contiguous():
            return None
        return block, int(tensor.storage_offset()) * tensor.element_size(), tuple(tensor.shape), tensor.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(size for size, _, _ in self._blocks)


def _view(block: Tensor, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operator with which torch itself computed something."""

    foreign: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled; to be kept out of compiling would import torch's compiler, which takes a second.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # What only looks at an input in another way (a view, a conversion to what it is already) computes nothing.
        given = {_start(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and _start(x) not in given]
        read = func is torch.ops.aten._local_scalar_dense.default  # a number that Python may have branched on
        if self.foreign is None and (made or read or func._schema.is_mutable):
            self.foreign = str(func.name())
        return out


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recording:
    """The kernels of one call of a function over fixed inputs, whose tensors live as long as the recording.

    `foreign` names what torch computed itself in the call, where it did: such a recording can't be replayed.
    """

    def __init__(self, library: Any, arena: Arena) -> None:
        self.arena = arena
        self.foreign: str | None = None
        self._program = library.Program()
        self._kept: list[Tensor] = []
        self._results: list[tuple[Tensor, int, tuple[int, ...], torch.dtype]] = []

    def make(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Run `call`, note its kernels down, and return its results, which are valid until the arena's next use."""
        if _local.current is not None:
            raise RuntimeError("a recording is being made already")
        watch = _Watch()  # type: ignore[no-untyped-call]
        self._program.record(True)
        _local.current = self
        try:
            with watch:
                results = call()
        finally:
            _local.current = None
            self._program.record(False)
        self.foreign = watch.foreign
        # Their memory is the arena's again, until a replay fills it anew: only the places are remembered.
        self._results = [place for place in map(self.arena.place, results) if place is not None]
        if len(self._results) < len(results):
            self.foreign = self.foreign or "a result that no kernel made"
        return results

    def replay(self) -> tuple[Tensor, ...]:
        """Run the kernels again. The results are valid until the arena's next use."""
        self._program.run()
        return tuple(_view(*place) for place in self._results)

    def profile(self) -> dict[str, float]:
        """Seconds of one replay, by kind of kernel."""
        return dict(self._program.profile())

    def keep(self, tensor: Tensor) -> None:
        """Let a tensor live as long as the recording, unless it is the arena's."""
        if not self.arena.holds(tensor):
            self._kept.append(tensor)


class _Local(threading.local):
    """What each thread has of its own: the recording it makes, and the arena it was lent."""

    current: Recording | None = None
    lent: Arena | None = None


_local = _Local()


def current() -> Recording | None:
    """The recording that this thread is making, or None."""
    return _local.current


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor for a kernel's result, of the arena that this thread uses at the time, if it does."""
    arena = _local.lent if _local.current is None else _local.current.arena
    return torch.empty(shape, dtype=dtype) if arena is None else arena.empty(shape, dtype)


@contextmanager
def using(arena: Arena) -> Iterator[None]:
    """Take kernels' results from `arena`: new memory would cost a page fault for every 4 KiB, at every step."""
    before, _local.lent = _local.lent, arena
    try:
        yield
    finally:
        _local.lent = before
