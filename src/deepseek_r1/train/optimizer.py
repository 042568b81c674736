"""AdamW over fp32 master weights, gradients clipped by a norm that no thread count changes, and its state by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from deepseek_r1.config.optimizer import OptimizerConfig
from deepseek_r1.core.errors import ConfigError, DeepSeekError
from deepseek_r1.scheduler import checked_number

PREFIX = "optimizer."
"""What the names of the optimizer's tensors begin with."""

_PARTS = ("exp_avg", "exp_avg_sq", "step")
_ROW = 4096  # elements summed in one go: one thread's work, whatever the number of threads
_BLOCK = 256 * _ROW  # elements widened to float64 at a time


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over those parameters that require gradients; weights with one dimension (norms, biases) don't decay.

    Neither fused nor foreach: one weight after the other is the order that every version of torch adds in. Raises
    `ConfigError`, naming the parameter, for one that is not fp32, and where there is nothing to train.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trained:
        raise ConfigError("no parameter requires gradients", remedy="load the model for training, or add adapters")
    for name, parameter in trained:
        if parameter.dtype is not torch.float32:
            raise ConfigError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}: small steps would be rounded away",
                remedy="keep trained weights in fp32; precision sets what steps compute in",
            )
    matrices = [parameter for _, parameter in trained if parameter.dim() > 1]
    vectors = [parameter for _, parameter in trained if parameter.dim() <= 1]
    decays = ((matrices, config.weight_decay), (vectors, 0.0))
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": decay} for members, decay in decays if members],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        foreach=False,
        fused=False,
    )


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their common norm is at most `max_norm`; returns the norm they had.

    The norm is summed in float64, in an order that depends on sizes alone. Where it is not finite the gradients are
    left as they are. Raises `ConfigError` for a `max_norm` that is no number above 0.
    """
    checked_number("max_norm", max_norm, 0.0, above=True)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sums = [part for gradient in gradients for part in _square_sums(gradient)]
    norm = math.sqrt(math.fsum(sums))  # fsum rounds once: no order of the parameters changes it
    if math.isfinite(norm) and norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def _square_sums(gradient: Tensor) -> list[float]:
    """Sums of the squares of each `_ROW` elements, of the last fewer."""
    flat = gradient.reshape(-1)
    whole = len(flat) - len(flat) % _ROW
    sums: list[float] = []
    for start in range(0, whole, _BLOCK):
        rows = flat[start : min(start + _BLOCK, whole)].view(-1, _ROW).double()  # (rows, _ROW)
        sums += rows.square().sum(1).tolist()
    sums.append(float(flat[whole:].double().square().sum()))
    return sums


def named_state(optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as `optimizer.<name>.<exp_avg|exp_avg_sq|step>`; the tensors are its own, not copies.

    A parameter that has not had a step has none. Learning rates are the schedule's state, not the optimizer's. Raises
    `DeepSeekError` for a parameter of the optimizer without a name.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in _named(optimizer, parameters).items():
        if held := optimizer.state.get(parameter):
            state |= {f"{PREFIX}{name}.{part}": held[part] for part in _PARTS}
    return state


def load_named_state(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the state that `named_state` gave; tensors whose names begin otherwise are passed over.

    The optimizer gets copies, on its parameters' devices. Raises `DeepSeekError`, with nothing changed, where a tensor
    is missing, is left over, or has another shape or type than the parameter's.
    """
    loaded: dict[Tensor, dict[str, Tensor]] = {}
    expected: set[str] = set()
    for name, parameter in _named(optimizer, parameters).items():
        names = {part: f"{PREFIX}{name}.{part}" for part in _PARTS}
        expected |= set(names.values())
        if not any(key in tensors for key in names.values()):
            continue
        held: dict[str, Tensor] = {}
        for part, key in names.items():
            shape = torch.Size() if part == "step" else parameter.shape
            found = tensors.get(key)
            if found is None or found.shape != shape or found.dtype is not torch.float32:
                what = "missing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
                raise _mismatch(f"{key} is {what}, not torch.float32 of shape {tuple(shape)}")
            # torch keeps the count of steps on the CPU, and makes its moments as the parameter lies in memory.
            held[part] = found.cpu().clone() if part == "step" else torch.empty_like(parameter).copy_(found)
        loaded[parameter] = held
    left = next((key for key in tensors if key.startswith(PREFIX) and key not in expected), None)
    if left is not None:
        raise _mismatch(f"{left} belongs to nothing that is trained")
    optimizer.state.clear()
    optimizer.state.update(loaded)


def _named(optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by name."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    named: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise DeepSeekError(
                    f"a trained parameter of shape {tuple(parameter.shape)} has no name",
                    remedy="give the named parameters that the optimizer was built from",
                )
            named[names[id(parameter)]] = parameter
    return named


def _mismatch(problem: str) -> DeepSeekError:
    return DeepSeekError(
        f"the saved optimizer state does not fit: {problem}",
        remedy="resume with the model and settings it was saved by",
    )
