"""From a checkpoint to a decoder with its weights, one layer at a time so that the peak stays near the final size."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.block import DTYPES
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.families.base import Weight, stored_shape
from deepseek_r1.models.registry import read_config, read_family
from deepseek_r1.models.shapes import Shapes, parameter_shapes
from deepseek_r1.models.surgery import pack_linears


def load_decoder(path: str | PathLike[str], precision: DeepSeekConfig, *, pack: bool, mtp: bool = False) -> Decoder:
    """The model at `path` with its weights. `pack` freezes the linears into the kernel's layout, for inference.

    Multi-token prediction modules are read with `mtp` only. Raises `CheckpointError` for a file that is not what its
    header says, `UnsupportedError` for an architecture or a tensor type that isn't built here.
    """
    with open_checkpoint(path) as checkpoint:
        config = read_config(checkpoint)
        if not mtp:
            config = replace(config, mtp_layers=0)
        shapes = parameter_shapes(config)
        weights = list(read_family(checkpoint).weights(checkpoint.format, config, shapes))
        _check_shapes(checkpoint, config, shapes, weights)
        with torch.device("meta"):
            decoder = Decoder(config, precision)
        _fill_layers(decoder, checkpoint, shapes, weights, pack)
        if config.tie_embeddings:
            dtype = DTYPES[precision.dtype_of("lm_head")]
            shared = decoder.embedding.weight
            decoder.lm_head.weight = shared if shared.dtype == dtype else nn.Parameter(shared.detach().to(dtype), False)
        if pack:
            pack_linears(decoder)
    return decoder.eval()


def _fill_layers(decoder: Decoder, checkpoint: Checkpoint, shapes: Shapes, weights: list[Weight], pack: bool) -> None:
    """Read and pack layer by layer, so that only one of them stands twice in memory at a time."""
    rest = dict.fromkeys(weights)
    for kind, layers in (("layers", decoder.layers), ("mtp", decoder.mtp)):
        for index, layer in enumerate(layers):
            mine = [weight for weight in rest if weight.ours[0].startswith(f"{kind}.{index}.")]
            for weight in mine:
                _fill(decoder, checkpoint, shapes, weight)
                del rest[weight]
            if pack:
                pack_linears(layer)
    for weight in rest:
        _fill(decoder, checkpoint, shapes, weight)


def _check_shapes(checkpoint: Checkpoint, config: ModelConfig, shapes: Shapes, weights: list[Weight]) -> None:
    """The stored tensors hold as many rows and columns as the parameters they are to become."""
    experts = 0 if config.moe is None else config.moe.experts
    for weight in weights:
        want = stored_shape(weight, shapes)
        for stored in weight.names(experts):
            have = tuple(checkpoint.tensors[stored].shape)
            if want != have:
                raise CheckpointError(checkpoint.path, stored, f"has shape {have}, the configuration asks for {want}")


def _fill(decoder: Decoder, checkpoint: Checkpoint, shapes: Shapes, weight: Weight) -> None:
    dtype = decoder.get_parameter(weight.ours[0]).dtype
    sizes = [shapes[name] for name in weight.ours]
    if "{e}" in weight.stored:
        (size,) = sizes
        tensor = torch.empty(size, dtype=dtype)
        for row, stored in zip(tensor, weight.names(size[0]), strict=True):
            _read_into(checkpoint, stored, row)
        parts = [tensor]
    else:
        stored_tensor = torch.empty(checkpoint.tensors[weight.stored].shape, dtype=dtype)
        _read_into(checkpoint, weight.stored, stored_tensor)
        parts = weight.form.split(stored_tensor, sizes, decoder.config)
    for name, part in zip(weight.ours, parts, strict=True):
        owner, _, leaf = name.rpartition(".")
        # A part of a larger tensor is copied out of it, so that the rest can be freed.
        part = part.contiguous() if len(parts) == 1 else part.clone()
        setattr(decoder.get_submodule(owner), leaf, nn.Parameter(part, requires_grad=False))


def _read_into(checkpoint: Checkpoint, name: str, tensor: Tensor) -> None:
    if tensor.dtype is torch.bfloat16:
        checkpoint.read_bf16_bits_into(name, tensor.view(torch.int16).numpy().view(np.uint16))
    else:
        checkpoint.read_into(name, tensor.numpy())
