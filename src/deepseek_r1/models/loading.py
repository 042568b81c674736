"""From a checkpoint to a decoder with its weights, one layer at a time so that the peak stays near the final size."""

from __future__ import annotations

from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.decoder import DTYPES, Decoder
from deepseek_r1.models.families.base import WeightName
from deepseek_r1.models.registry import read_config, read_family, stored_name
from deepseek_r1.models.surgery import pack_linears


def load_decoder(path: str | PathLike[str], precision: DeepSeekConfig, *, pack: bool) -> Decoder:
    """The model at `path` with its weights. `pack` freezes the linears into the kernel's layout, for inference.

    Raises `CheckpointError` for a file that is not what its header says, `UnsupportedError` for an architecture or a
    tensor type that isn't built here.
    """
    with open_checkpoint(path) as checkpoint:
        config = read_config(checkpoint)
        with torch.device("meta"):
            decoder = Decoder(config, precision)
        names = list(read_family(checkpoint).weights(config))
        _check_shapes(checkpoint, decoder, names)
        # The rotary frequencies are computed, not read: build them again where there is memory behind them.
        decoder.rotary = type(decoder).rotary_for(config, precision)
        for index, layer in enumerate(decoder.layers):
            prefix = f"layers.{index}."
            _fill(decoder, checkpoint, config, [name for name in names if name.ours.startswith(prefix)])
            if pack:
                pack_linears(layer)
        _fill(decoder, checkpoint, config, [name for name in names if not name.ours.startswith("layers.")])
        if config.tie_embeddings:
            dtype = DTYPES[precision.dtype_of("lm_head")]
            shared = decoder.embedding.weight
            decoder.lm_head.weight = shared if shared.dtype == dtype else nn.Parameter(shared.detach().to(dtype), False)
        if pack:
            pack_linears(decoder)
    return decoder.eval()


def weights_bytes(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes that a loaded, packed decoder of this shape takes, from its header alone."""
    size = {name: DTYPES[precision.dtype_of(name)].itemsize for name in ("embedding", "linear", "lm_head")}
    table = config.vocab_size * config.hidden_size
    blocks = config.parameters - table * (1 if config.tie_embeddings else 2)
    return blocks * size["linear"] + table * (size["embedding"] + size["lm_head"])


def _check_shapes(checkpoint: Checkpoint, decoder: Decoder, names: list[WeightName]) -> None:
    for name in names:
        want = tuple(decoder.get_parameter(name.ours).shape)
        stored = stored_name(checkpoint, name)
        have = tuple(checkpoint.tensors[stored].shape)
        if want != have:
            raise CheckpointError(checkpoint.path, stored, f"has shape {have}, the configuration asks for {want}")


def _fill(decoder: Decoder, checkpoint: Checkpoint, config: ModelConfig, names: list[WeightName]) -> None:
    for name in names:
        owner, _, leaf = name.ours.rpartition(".")
        module = decoder.get_submodule(owner)
        tensor = _read(checkpoint, stored_name(checkpoint, name), getattr(module, leaf).dtype)
        if name.interleaved and checkpoint.format == "gguf":
            tensor = _halves(tensor, getattr(config, name.interleaved))
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _read(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(checkpoint.tensors[name].shape, dtype=dtype)
    if dtype is torch.bfloat16:
        checkpoint.read_bf16_bits_into(name, tensor.view(torch.int16).numpy().view(np.uint16))
    else:
        checkpoint.read_into(name, tensor.numpy())
    return tensor


def _halves(tensor: Tensor, heads: int) -> Tensor:
    """Undo llama-style GGUF's reordering of q and k rows: interleaved pairs (x0, y0, x1, y1 …) back to halves."""
    rows = tensor.shape[0]
    paired = tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:])
    return paired.transpose(1, 2).reshape(tensor.shape).contiguous()
