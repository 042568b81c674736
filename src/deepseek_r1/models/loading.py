"""From a checkpoint to a decoder with its weights, one layer at a time so that the peak stays near the final size."""

from __future__ import annotations

import math
from dataclasses import replace
from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.kernels import ops
from deepseek_r1.kernels.quantised import QuantisedWeight, quantise
from deepseek_r1.layers.linear import Linear, PackedEmbedding, PackedLinear
from deepseek_r1.layers.moe import ExpertLinear
from deepseek_r1.models.block import DTYPES
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.checkpoint.mapped import quoted
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.decoder import Decoder, Embedding
from deepseek_r1.models.families.base import Weight, stored_shape
from deepseek_r1.models.formats import WeightFormat, is_experts, quantised_format, resolve
from deepseek_r1.models.registry import read_config, read_family
from deepseek_r1.models.shapes import Shapes, parameter_shapes
from deepseek_r1.models.surgery import pack_linears, replace_modules

_PIECE_ELEMENTS = 1 << 23  # a matrix is quantised in pieces of so many weights: 32 MiB of float32


def load_decoder(path: str | PathLike[str], precision: DeepSeekConfig, *, pack: bool, mtp: bool = False) -> Decoder:
    """The model at `path` with its weights. `pack` freezes the linears into the kernel's layout, for inference.

    Without it, weights that the precision keeps in 8 or 4 bits are float32 tensors of the values that these stand for.
    Multi-token prediction modules are read with `mtp` only. Raises `CheckpointError` for a file that is not what its
    header says, `UnsupportedError` for an architecture or a tensor type that isn't built here.
    """
    with open_checkpoint(path) as checkpoint:
        return read_decoder(checkpoint, resolve(precision, checkpoint, bf16=ops.NATIVE), pack=pack, mtp=mtp)


def empty_decoder(checkpoint: Checkpoint, precision: DeepSeekConfig, *, mtp: bool) -> Decoder:
    """The decoder of an open checkpoint, its weights on torch's meta device: shapes without memory."""
    config = read_config(checkpoint)
    if not mtp:
        config = replace(config, mtp_layers=0)
    with torch.device("meta"):
        return Decoder(config, precision)


def read_decoder(checkpoint: Checkpoint, precision: DeepSeekConfig, *, pack: bool, mtp: bool) -> Decoder:
    """`load_decoder` from an open checkpoint, at a precision that is resolved."""
    decoder = empty_decoder(checkpoint, precision, mtp=mtp)
    config = decoder.config
    shapes = parameter_shapes(config)
    weights = list(read_family(checkpoint).weights(checkpoint.format, config, shapes))
    _check_shapes(checkpoint, config, shapes, weights)
    reader = _Reader(checkpoint, decoder, shapes, pack)
    rest = dict.fromkeys(weights)
    for kind, layers in (("layers", decoder.layers), ("mtp", decoder.mtp)):
        for index, layer in enumerate(layers):
            mine = [weight for weight in rest if weight.ours[0].startswith(f"{kind}.{index}.")]
            for weight in mine:
                reader.fill(weight)
                del rest[weight]
            if pack:
                pack_linears(layer)
    for weight in rest:
        reader.fill(weight)
    reader.finish(weights)
    return decoder.eval()


class _Reader:
    """Fills a decoder's weights from a checkpoint. The caller packs layer by layer, so that one layer at a time stands
    twice in memory.
    """

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder, shapes: Shapes, pack: bool) -> None:
        self.checkpoint = checkpoint
        self.decoder = decoder
        self.shapes = shapes
        self.pack = pack
        self.table: QuantisedWeight | None = None  # the embedding's, until it is packed

    def fill(self, weight: Weight) -> None:
        """Read one stored tensor into the parameters that it holds."""
        sizes = [self.shapes[name] for name in weight.ours]
        stored, names = weight.stored, weight.names(sizes[0][0])
        types = {self.checkpoint.tensors[name].dtype for name in names}
        # Experts whose types differ have no blocks to take over: one format holds all of them.
        form = quantised_format(
            self.decoder.precision, weight.ours[0], sizes[0], types.pop() if len(types) == 1 else None
        )
        if form is not None:
            parts = [read_quantised(self.checkpoint, name, form) for name in names]
            if is_experts(weight.ours[0]):
                self._fill_experts(weight.ours[0], sizes[0], parts)
            else:
                self._fill_quantised(weight, sizes, parts[0])
            return
        dtype = self.decoder.get_parameter(weight.ours[0]).dtype
        if "{e}" in stored:
            (size,) = sizes
            tensor = torch.empty(size, dtype=dtype)
            for row, name in zip(tensor, names, strict=True):
                _read_into(self.checkpoint, name, row)
            split = [tensor]
        else:
            stored_tensor = torch.empty(self.checkpoint.tensors[stored].shape, dtype=dtype)
            _read_into(self.checkpoint, stored, stored_tensor)
            split = weight.form.split(stored_tensor, sizes, self.decoder.config)
        for name, part in zip(weight.ours, split, strict=True):
            # A part of a larger tensor is copied out of it, so that the rest can be freed.
            self._set(name, part.contiguous() if len(split) == 1 else part.clone())

    def finish(self, weights: list[Weight]) -> None:
        """What ties and the output layer need once everything has been read."""
        decoder = self.decoder
        if decoder.config.tie_embeddings:
            (table,) = (weight for weight in weights if weight.ours == ("embedding.weight",))
            if not self._is_shared(table):
                self.shapes["lm_head.weight"] = self.shapes["embedding.weight"]
                self.fill(replace(table, ours=("lm_head.weight",)))
            elif self.table is None:
                decoder.lm_head.weight = decoder.embedding.weight
            else:
                packed = ops.PackedWeight([self.table])
                replace_modules(decoder, Embedding, lambda _: PackedEmbedding(packed))
                replace_modules(decoder, Linear, lambda _: PackedLinear(packed, None), pattern="lm_head")
                self.table = None
        if self.table is not None:
            alone = ops.PackedWeight([self.table])
            replace_modules(decoder, Embedding, lambda _: PackedEmbedding(alone))
        if self.pack:
            pack_linears(decoder)

    def _is_shared(self, table: Weight) -> bool:
        """Whether the embedding and a tied output layer read the same bytes."""
        precision, dtype = self.decoder.precision, self.checkpoint.tensors[table.stored].dtype
        own, other = (
            quantised_format(precision, "embedding.weight", self.shapes["embedding.weight"], dtype, as_class=kind)
            for kind in ("embedding", "lm_head")
        )
        plain = DTYPES[precision.dtype_of("embedding")] == DTYPES[precision.dtype_of("lm_head")]
        return own == other and (own is not None or plain)

    def _fill_quantised(self, weight: Weight, sizes: list[tuple[int, ...]], whole: QuantisedWeight) -> None:
        for index, name in enumerate(weight.ours):
            part = whole.map_rows(
                lambda t, index=index: weight.form.split(t, sizes, self.decoder.config)[index]  # type: ignore[misc]
            )
            if not self.pack:
                self._set(name, part.dequantise())
            elif name == "embedding.weight":
                self.table = part
            else:
                linear = self.decoder.get_submodule(name.removesuffix(".weight"))
                assert isinstance(linear, Linear)
                linear.quantised = part

    def _fill_experts(self, name: str, size: tuple[int, ...], stored: list[QuantisedWeight]) -> None:
        """`stored` are the experts one by one, or all of them one below the other."""
        experts, rows, _ = size
        parts = stored
        if len(stored) < experts:
            parts = [stored[0].map_rows(lambda t, first=e * rows: t[first : first + rows]) for e in range(experts)]  # type: ignore[misc]
        if self.pack and ops.NATIVE:
            module = self.decoder.get_submodule(name.removesuffix(".weight"))
            assert isinstance(module, ExpertLinear)
            module.quantised = parts
        else:
            self._set(name, torch.stack([part.dequantise() for part in parts]))

    def _set(self, name: str, value: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(self.decoder.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def read_quantised(checkpoint: Checkpoint, name: str, kept: WeightFormat) -> QuantisedWeight:
    """The stored matrix `name` (of experts: one below the other) in a format: its own blocks, or its values quantised.

    Raises `CheckpointError` for values that are not finite, which no scale fits, and as `Checkpoint.read` does.
    """
    if kept.own:
        blocks = checkpoint.read_quantised(name)
        assert blocks is not None
        codes, scales, minima = (None if a is None else torch.from_numpy(a) for a in blocks[:3])
        assert codes is not None and scales is not None
        for numbers in (scales, minima):
            if numbers is not None and not bool(numbers.isfinite().all()):
                problem = "holds scales or minima of blocks that are not finite"
                raise CheckpointError(checkpoint.path, f"tensor {quoted(name)}", problem)
        return QuantisedWeight(codes, scales, minima, blocks.bits, blocks.group)
    count, *inner, columns = checkpoint.tensors[name].shape
    height = math.prod(inner)  # rows of each of `count`
    group = kept.group or columns
    codes = torch.empty(count * height, columns, dtype=torch.uint8)
    scales = torch.empty(count * height, -(-columns // group))
    minima = torch.empty_like(scales) if kept.minima else None
    units = torch.empty(count * height, 1) if kept.multiples else None
    step = max(1, _PIECE_ELEMENTS // (height * columns))
    for start in range(0, count, step):
        stop = min(start + step, count)
        values = torch.from_numpy(checkpoint.read_rows(name, start, stop)).view(-1, columns)
        try:
            part = quantise(values, kept.bits, group, minima=kept.minima, multiples=kept.multiples)
        except ValueError as error:
            raise CheckpointError(checkpoint.path, f"tensor {quoted(name)}", str(error)) from error
        place = slice(start * height, stop * height)
        codes[place], scales[place] = part.codes, part.scales
        if minima is not None and part.minima is not None:
            minima[place] = part.minima
        if units is not None and part.row_scales is not None:
            units[place] = part.row_scales
    return QuantisedWeight(codes, scales, minima, kept.bits, group, units)


def _check_shapes(checkpoint: Checkpoint, config: ModelConfig, shapes: Shapes, weights: list[Weight]) -> None:
    """The stored tensors hold as many rows and columns as the parameters they are to become."""
    experts = 0 if config.moe is None else config.moe.experts
    for weight in weights:
        want = stored_shape(weight, shapes)
        for stored in weight.names(experts):
            have = tuple(checkpoint.tensors[stored].shape)
            if want != have:
                raise CheckpointError(checkpoint.path, stored, f"has shape {have}, the configuration asks for {want}")


def _read_into(checkpoint: Checkpoint, name: str, tensor: Tensor) -> None:
    if tensor.dtype is torch.bfloat16:
        checkpoint.read_bf16_bits_into(name, tensor.view(torch.int16).numpy().view(np.uint16))
    else:
        checkpoint.read_into(name, tensor.numpy())
