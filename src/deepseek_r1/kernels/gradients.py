"""What training asks of native kernels: gradients, in torch formulae on saved inputs. Forward bits are the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_r1.kernels import backward, native, sampling
from deepseek_r1.kernels.packed import PackedWeight

Operator = Callable[..., Tensor]

_ROWS = 256  # operands of products in the backward pass have multiples of so many rows
_PIECE = 1 << 23  # weights that are unpacked at a time: 32 MiB of float32


class _Recomputed(torch.autograd.Function):
    """A native kernel forward; backward goes through the torch formula of the same operator on the saved inputs."""

    @staticmethod
    def forward(ctx: Any, run: Operator, formula: Operator, *tensors: Tensor) -> Tensor:
        ctx.formula = formula
        ctx.save_for_backward(*tensors)
        return run(*(t.detach() for t in tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.formula(*inputs)
        wanted = [t for t in inputs if t.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grads[0]))
        return None, None, *(next(found) if t.requires_grad else None for t in inputs)


def differentiable(run: Operator, formula: Operator, *tensors: Tensor) -> Tensor:
    """run(*tensors), whose gradient is that of `formula`, the same operator in torch, on the same inputs."""
    if needed(*tensors):
        return _Recomputed.apply(run, formula, *tensors)  # type: ignore[no-untyped-call, no-any-return]
    return run(*tensors)


class _WithGradient(torch.autograd.Function):
    """A native kernel forward, and somebody's formula of its gradient on the saved inputs."""

    @staticmethod
    def forward(ctx: Any, run: Operator, gradient: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Tensor:
        ctx.gradient = gradient
        ctx.save_for_backward(*tensors)
        return run(*(t.detach() for t in tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradient(grads[0], *(t.detach() for t in ctx.saved_tensors))


def with_gradient(run: Operator, gradient: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Tensor:
    """run(*tensors), whose gradients `gradient(grad, *tensors)` gives: one for each of the tensors."""
    if needed(*tensors):
        return _WithGradient.apply(run, gradient, *tensors)  # type: ignore[no-untyped-call, no-any-return]
    return run(*tensors)


def needed(*tensors: Tensor | None) -> bool:
    """Whether a gradient has to flow back to one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _Sum(torch.autograd.Function):
    """x + scale * y: nothing has to be kept."""

    @staticmethod
    def forward(ctx: Any, run: Operator, x: Tensor, y: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.dtype = scale, y.dtype
        return run(x.detach(), y.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        of_y = grads[0] if ctx.scale == 1.0 else grads[0] * ctx.scale
        return None, grads[0], of_y.to(ctx.dtype), None


def added(run: Operator, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """run(x, y), which is x + scale * y."""
    return _Sum.apply(run, x, y, scale) if needed(x, y) else run(x, y)  # type: ignore[no-untyped-call]


class _Turned(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, run: Operator, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.run, ctx.dtype = run, x.dtype
        ctx.save_for_backward(cos, signed_sin)
        return run(x.detach(), cos, signed_sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        return None, ctx.run(grads[0].contiguous(), cos, -signed_sin).to(ctx.dtype), None, None


def turned(run: Operator, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """run(x, cos, signed_sin), which rotates pairs of x's columns."""
    if needed(x):
        return _Turned.apply(run, x, cos, signed_sin)  # type: ignore[no-untyped-call, no-any-return]
    return run(x, cos, signed_sin)


class _Swish(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, run: Operator, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return run(gate.detach(), up.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return None, *backward.gated(grads[0], gate, up)


def swish(run: Operator, gate: Tensor, up: Tensor) -> Tensor:
    """run(gate, up), which is silu(gate) * up."""
    return _Swish.apply(run, gate, up) if needed(gate, up) else run(gate, up)  # type: ignore[no-untyped-call]


class _Normed(torch.autograd.Function):
    """weight * x / rms(x) over the last dimension."""

    @staticmethod
    def forward(ctx: Any, run: Operator, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return run(x.detach(), weight.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_x = backward.rms_norm(grads[0], x, weight, ctx.eps)
        if ctx.needs_input_grad[2]:
            wide = x.float()
            scale = torch.rsqrt(torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(ctx.eps)).unsqueeze(-1)
            of_weight = (grads[0].float() * wide).mul_(scale).flatten(0, -2).sum(0).to(weight.dtype)
        return None, of_x, of_weight, None


def normed(run: Operator, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """run(x, weight), which is weight * x / rms(x)."""
    return _Normed.apply(run, x, weight, eps) if needed(x, weight) else run(x, weight)  # type: ignore[no-untyped-call]


class _Parts(torch.autograd.Function):
    """Columns of a product, whose gradients need no joining where they were written side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.dtype, ctx.sizes = x.shape, x.dtype, sizes
        return torch.split(x.detach(), list(sizes), dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
        first = grads[0]
        if first is not None and _side_by_side(grads, ctx.shape):
            return first.as_strided(ctx.shape, (ctx.shape[-1], 1), first.storage_offset()), None
        pairs = zip(grads, ctx.sizes, strict=True)
        whole = [torch.zeros(*ctx.shape[:-1], size, dtype=ctx.dtype) if g is None else g for g, size in pairs]
        return torch.cat(whole, -1), None


def _side_by_side(grads: Sequence[Tensor | None], shape: torch.Size) -> bool:
    """Whether these are the columns, in order, of one tensor of that shape (rows, columns)."""
    first = grads[0]
    if first is None or len(shape) != 2:
        return False
    place = first.storage_offset()
    for grad in grads:
        if grad is None or grad.stride() != (shape[1], 1) or grad.storage_offset() != place:
            return False
        if grad.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return False
        place += grad.shape[1]
    return True


def parts(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x (..., sum of sizes) -> views of so many columns each."""
    if needed(x):
        return _Parts.apply(x, sizes)  # type: ignore[no-untyped-call, no-any-return]
    return torch.split(x, list(sizes), dim=-1)


class _Product(torch.autograd.Function):
    """x @ weight^T + bias through the packed weight. `master` (out, in) learns where it is given.

    Straight through what the kernel rounds: the gradient is that of the product with the weight's own values. It
    reaches x through the packed bytes, of which a piece at a time is unpacked.
    """

    @staticmethod
    def forward(ctx: Any, weight: PackedWeight, x: Tensor, master: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        ctx.wanted = tuple(t is not None and t.requires_grad for t in (x, master, bias))
        ctx.dtype = x.dtype
        ctx.save_for_backward(x if ctx.wanted[1] else None)
        return weight.linear(x.detach(), None if bias is None else bias.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        weight: PackedWeight = ctx.weight
        grad = grads[0].reshape(-1, weight.out_features)
        dtype, rows = _multiplied_in(weight), len(grad)
        of_x = of_master = of_bias = None
        rounded = _operand(grad, dtype)
        if ctx.wanted[0]:
            flat = _through(rounded, weight, dtype)[:rows]
            of_x = flat.to(ctx.dtype).view(*grads[0].shape[:-1], weight.in_features)
        if ctx.wanted[1]:
            x = _operand(ctx.saved_tensors[0].reshape(-1, weight.in_features), dtype)
            of_master = (rounded.t() @ x).float()
        if ctx.wanted[2]:
            of_bias = grad.float().sum(0)
        return None, of_x, of_master, of_bias


def product(weight: PackedWeight, x: Tensor, master: Tensor | None, bias: Tensor | None) -> Tensor:
    """x (..., in) -> (..., out) by the packed weight; gradients flow to x, to the float32 `master` and to the bias."""
    if needed(x, master, bias):
        return _Product.apply(weight, x, master, bias)  # type: ignore[no-untyped-call, no-any-return]
    return weight.linear(x, bias)


class Low(NamedTuple):
    """An adapter's part of a product: masters A (rank, in) and B (out, rank), their packed forms, and where it adds.

    What it makes of a row, times `scale`, is added to the columns from `first` on.
    """

    a: Tensor
    b: Tensor
    packed_a: PackedWeight
    packed_b: PackedWeight
    scale: float
    first: int

    @property
    def columns(self) -> slice:
        """The columns that it adds to."""
        return slice(self.first, self.first + self.packed_b.out_features)


class _Adapted(torch.autograd.Function):
    """A frozen packed product with low-rank parts: what one after the other would give, rounding each operand once."""

    @staticmethod
    def forward(
        ctx: Any, weight: PackedWeight, bias: Tensor | None, parts: Sequence[Low], x: Tensor, *masters: Tensor
    ) -> Tensor:
        flat = x.detach().reshape(-1, weight.in_features)
        ctx.dtype = _multiplied_in(weight)
        out, operand = weight.linear(flat, bias), _operand(flat, ctx.dtype)
        # Rounded once for all parts: a product that reads bfloat16 would round each time, to the same numbers.
        rounded = operand[: len(flat)]
        lows = [part.packed_a.linear(rounded if part.packed_a.dtype is ctx.dtype else flat, None) for part in parts]
        for part, low in zip(parts, lows, strict=True):
            native.add_into(out[:, part.columns], part.packed_b.linear(low, None), part.scale)
        ctx.weight, ctx.parts, ctx.x_dtype, ctx.x_shape = weight, parts, x.dtype, x.shape
        ctx.save_for_backward(operand, *lows)
        return out.view(*x.shape[:-1], weight.out_features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *lows = ctx.saved_tensors
        rows = grads[0].numel() // ctx.weight.out_features
        grad = _operand(grads[0].reshape(rows, -1), ctx.dtype)
        of_low: list[Tensor] = []
        of_b: list[Tensor] = []
        for part, low in zip(ctx.parts, lows, strict=True):
            own = grad[:, part.columns]
            of_low.append(own @ (part.b * part.scale).to(ctx.dtype))
            of_b.append((own.t() @ _operand(low, ctx.dtype)).float() * part.scale)
        all_low = torch.cat(of_low, 1)
        of_a = (all_low.t() @ x).float().split([part.packed_a.out_features for part in ctx.parts])
        of_x = None
        if ctx.needs_input_grad[3]:
            of_x = _through(grad, ctx.weight, ctx.dtype)
            of_x = of_x + all_low @ torch.cat([part.a for part in ctx.parts]).to(ctx.dtype)
            of_x = of_x[:rows].to(ctx.x_dtype).view(ctx.x_shape)
        pairs = (each for pair in zip(of_a, of_b, strict=True) for each in pair)
        return None, None, None, of_x, *pairs


def adapted(weight: PackedWeight, x: Tensor, bias: Tensor | None, parts: Sequence[Low]) -> Tensor:
    """See `ops.adapted_linear`."""
    masters = [master for part in parts for master in (part.a, part.b)]
    return _Adapted.apply(weight, bias, parts, x, *masters)  # type: ignore[no-untyped-call, no-any-return]


def _through(grad: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """grad (T, out) @ weight -> (T, in), pieces of the weight in ascending order."""
    step = max(1, _PIECE // weight.in_features)
    total: Tensor | None = None
    for start in range(0, weight.out_features, step):
        stop = min(start + step, weight.out_features)
        part = grad[:, start:stop] @ weight.rows(torch.arange(start, stop), dtype)
        total = part if total is None else total + part
    assert total is not None
    return total


def _operand(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (T, n) in `dtype` with rows of zeros behind it, up to one of a few numbers of rows.

    oneDNN keeps code and memory for every number of rows that it meets, and batches have all of them.
    """
    rows = -(-len(x) // _ROWS) * _ROWS
    if rows == len(x):
        return x.to(dtype)
    out = torch.empty(rows, x.shape[1], dtype=dtype)
    out[: len(x)] = x
    out[len(x) :] = 0
    return out


def _multiplied_in(weight: PackedWeight) -> torch.dtype:
    """bfloat16 where the kernel's own product is no finer and the processor multiplies it; float32 for float32."""
    plain = weight.spec.get("kind") == "fp32" or (weight.blob is None and weight.dtype is torch.float32)
    return torch.float32 if plain or not _multiplies_bf16() else torch.bfloat16


@cache
def _multiplies_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Logprobs(torch.autograd.Function):
    """Log-probabilities of chosen tokens, whose gradient needs the logits alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(logits, tokens)
        return _logprobs(logits.detach(), tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, tokens = ctx.saved_tensors
        grad = grads[0].to(logits.dtype).unsqueeze(-1)
        out = torch.softmax(logits, -1).mul_(-grad)
        return out.scatter_add_(-1, tokens.unsqueeze(-1), grad), None


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    if sampling.readable(logits):
        return sampling.logprobs(logits, torch.arange(len(logits)), tokens, 0)[0]
    wide = logits.double()
    return wide.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(wide, -1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """See `ops.token_logprobs`."""
    if needed(logits):
        return _Logprobs.apply(logits, tokens)  # type: ignore[no-untyped-call, no-any-return]
    return _logprobs(logits, tokens)
