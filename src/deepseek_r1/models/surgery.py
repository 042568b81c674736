"""Replace linears by name pattern: the one way LoRA, packed and quantised forms get into the decoder."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from deepseek_r1.layers.linear import Linear, LinearGroup, PackedLinear, PackedLinearGroup


def replace_modules(
    root: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module], *, pattern: str = ".*"
) -> int:
    """Put `make(module)` in place of each `kind` below `root` whose dotted name matches `pattern`; returns how many."""
    matches = re.compile(pattern).fullmatch
    found = [(name, module) for name, module in root.named_modules() if isinstance(module, kind) and matches(name)]
    for name, module in found:
        parent, _, leaf = name.rpartition(".")
        setattr(root.get_submodule(parent), leaf, make(module))
    return len(found)


def pack_linears(root: nn.Module) -> None:
    """Freeze the linears below `root` into the kernel's layout; groups that read one input become one product."""
    replace_modules(root, LinearGroup, lambda m: PackedLinearGroup(m) if isinstance(m, LinearGroup) else m)
    replace_modules(root, Linear, lambda m: PackedLinear(m) if isinstance(m, Linear) else m)
