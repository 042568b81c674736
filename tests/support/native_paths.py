"""The instruction-set paths that this machine can run, and the same bits as the measure of equality."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deepseek_r1.kernels import native

if native.library is None:
    raise RuntimeError("the tests of the native kernels need them built, and DEEPSEEK_R1_KERNELS unset")


def _runs(name: str) -> bool:
    try:
        native.library.choose(name)
    except ValueError:
        return False
    return True


PATHS = [name for name in ("generic", "avx2", "avx512", "amx") if _runs(name)]
native.library.choose("auto")


@contextmanager
def native_path(name: str, threads: int | None = None) -> Iterator[None]:
    """Kernels run on this path, with that many threads, until the end of the block."""
    before = native.library.path(), native.library.threads()
    native.library.choose(name)
    native.library.set_threads(threads or before[1])
    try:
        yield
    finally:
        native.library.choose(before[0])
        native.library.set_threads(before[1])


def bits(x: Tensor) -> Tensor:
    """The bits of a float tensor, as integers: what has to be equal where the promise is one of bits."""
    return x.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def awkward(*shape: int, seed: int, dtype: torch.dtype = torch.float32, specials: tuple[float, ...] = ()) -> Tensor:
    """Random numbers over six orders of magnitude, with a few `specials` among them."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng) * 10 ** (6 * torch.rand(shape, generator=rng) - 3)
    for value in specials:
        x[torch.rand(shape, generator=rng) < 0.02] = value
    return x.to(dtype)
