"""Replace linears by name pattern: the one way LoRA, packed and quantised forms get into the decoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeGuard

from torch import nn

from deepseek_r1.kernels import ops
from deepseek_r1.layers.latent import HeadLinear, PackedHeadLinear
from deepseek_r1.layers.linear import Linear, LinearGroup, PackedLinear, PackedLinearGroup
from deepseek_r1.layers.moe import ExpertLinear, PackedExpertLinear, Router
from deepseek_r1.layers.norm import RMSNorm
from deepseek_r1.layers.trained import TrainedEmbedding, TrainedLinear, TrainedNorm
from deepseek_r1.models.decoder import Decoder, Embedding


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
    """Freeze the linears below `root` into the kernel's layout.

    Groups that read one input become one product where their formats agree, else a product per member. Maps per head,
    experts and routers are packed for native kernels only: torch has no better layout for them than their own.
    """
    replace_modules(root, LinearGroup, lambda m: PackedLinearGroup.of(m) if _agrees(m) else m)
    replace_modules(root, Linear, lambda m: PackedLinear.of(m) if isinstance(m, Linear) else m)
    if ops.NATIVE:
        replace_modules(root, HeadLinear, lambda m: PackedHeadLinear.of(m) if isinstance(m, HeadLinear) else m)
        replace_modules(root, ExpertLinear, lambda m: PackedExpertLinear.of(m) if isinstance(m, ExpertLinear) else m)
        for module in root.modules():
            if isinstance(module, Router):
                module.pack()


def train_all(decoder: Decoder) -> None:
    """Let every weight of a decoder that isn't packed learn, in float32 masters.

    Linears, tables and norms then compute from packed forms that `refresh_trained` brings up to date. Maps per head,
    experts and routers learn as plain tensors in torch.
    """
    table, tied = decoder.embedding.weight, decoder.lm_head.weight is decoder.embedding.weight
    decoder.requires_grad_(True)
    for module in decoder.modules():
        if isinstance(module, Router) and module.bias is not None:
            module.bias.requires_grad_(False)  # balancing moves it, no gradient does
    replace_modules(decoder, Linear, _trained_linear)
    replace_modules(decoder, RMSNorm, _trained_norm)
    replace_modules(decoder, Embedding, lambda _: TrainedEmbedding(table, table.dtype))
    if tied:
        decoder.lm_head.weight = decoder.embedding.weight


def _trained_linear(module: nn.Module) -> nn.Module:
    assert isinstance(module, Linear)
    return TrainedLinear(module.weight, module.bias, module.weight.dtype)


def _trained_norm(module: nn.Module) -> nn.Module:
    assert isinstance(module, RMSNorm)
    return TrainedNorm(module.weight, module.eps, module.weight.dtype)


def refresh_trained(root: nn.Module) -> None:
    """Bring what products read up to date with the masters, after a step."""
    for module in root.modules():
        if isinstance(module, TrainedLinear):
            module.refresh()


def _agrees(group: nn.Module) -> TypeGuard[LinearGroup]:
    return len({member.format for member in group.children() if isinstance(member, Linear)}) == 1
