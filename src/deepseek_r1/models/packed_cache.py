"""Packed weights kept on disk: the first start packs and writes them, the next ones map what was written.

A file is for one checkpoint (by digest), precision, layout version and path of the kernels; see `cache_files`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.kernels import ops
from deepseek_r1.layers.latent import HeadLinear, PackedHeadLinear
from deepseek_r1.layers.linear import Linear, LinearGroup, PackedEmbedding, PackedLinear, PackedLinearGroup
from deepseek_r1.layers.moe import ExpertLinear, PackedExpertLinear, Router
from deepseek_r1.models import cache_files
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.decoder import Decoder, Embedding
from deepseek_r1.models.formats import QUANTISER_VERSION, resolve
from deepseek_r1.models.loading import empty_decoder, read_decoder

LEAST_BYTES = 16 << 20
"""A checkpoint with fewer bytes of tensors is packed as quickly as it is mapped, and not kept."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16)}

log = logging.getLogger(__name__)


def load_packed(path: str | PathLike[str], precision: DeepSeekConfig, *, mtp: bool = False) -> Decoder:
    """`load_decoder(path, precision, pack=True)`, from the cache where it has these weights; else it has them then.

    Raises as `load_decoder` does. What is wrong with the cache is logged, and the weights are packed anew.
    """
    with open_checkpoint(path) as checkpoint:
        precision = resolve(precision, checkpoint, bf16=ops.NATIVE)
        size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        if not ops.NATIVE or size < LEAST_BYTES or cache_files.limit() == 0:
            return read_decoder(checkpoint, precision, pack=True, mtp=mtp)
        key = _key(checkpoint, precision, mtp)
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        file = cache_files.folder() / (name + cache_files.SUFFIX)
        try:
            decoder = _restore(file, key, empty_decoder(checkpoint, precision, mtp=mtp))
            cache_files.used(file)
            return decoder.eval()
        except FileNotFoundError:
            log.info("packing the weights of %s, to be mapped from %s at the next start", path, file)
        except (OSError, CheckpointError) as error:
            log.warning("%s; packing the weights of %s anew", error, path)
        decoder = read_decoder(checkpoint, precision, pack=True, mtp=mtp)
        try:
            if not _store(file, key, Path(path), decoder):
                return decoder
        except (OSError, CheckpointError) as error:
            log.warning("packed weights are not kept for the next start: %s", error)
            return decoder
        # As at the next start: what is mapped lies on huge pages, what was packed seldom does. Not both at once.
        del decoder
        try:
            return _restore(file, key, empty_decoder(checkpoint, precision, mtp=mtp)).eval()
        except (OSError, CheckpointError) as error:
            log.warning("%s; packing the weights of %s once more", error, path)
            return read_decoder(checkpoint, precision, pack=True, mtp=mtp)


def _key(checkpoint: Checkpoint, precision: DeepSeekConfig, mtp: bool) -> dict[str, Any]:
    return {
        "digest": cache_files.checkpoint_digest(checkpoint),
        "precision": precision.name,
        "mtp": mtp,
        "layout": ops.LAYOUT_VERSION,
        "quantiser": QUANTISER_VERSION,
        "path": ops.PATH,
    }


def _store(file: Path, key: Mapping[str, Any], model: Path, decoder: Decoder) -> bool:
    """Write all weights of a packed decoder, one that two modules share once. False where it has some that can't be."""
    pieces: list[npt.NDArray[np.uint8]] = []
    blobs: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}  # id of a packed weight -> its place in `blobs`
    modules: dict[str, int] = {}
    tensors: dict[str, Tensor] = dict(decoder.named_parameters())
    for name, module in decoder.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, ops.PackedWeight | ops.PackedStack):
            continue
        if weight.blob is None:
            return False  # a format without a native kernel is held as torch holds it
        if id(weight) not in numbers:
            numbers[id(weight)] = len(blobs)
            blobs.append({"piece": len(pieces), "bytes": weight.nbytes, "spec": dict(weight.spec)})
            pieces.append(weight.blob.numpy())
        modules[name] = numbers[id(weight)]
        if isinstance(module, PackedLinear | PackedLinearGroup) and module.bias is not None:
            tensors[f"{name}.bias"] = module.bias
    plain = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        plain[name] = {"piece": len(pieces), "dtype": dtype, "shape": list(tensor.shape)}
        pieces.append(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    header = {"key": key, "model": str(model), "blobs": blobs, "modules": modules, "tensors": plain}
    cache_files.write(file, header, pieces)
    return True


def _restore(path: Path, key: Mapping[str, Any], decoder: Decoder) -> Decoder:
    """Put the weights of a cache file into an empty decoder. Raises `OSError` or `CheckpointError` for a bad file."""
    file = cache_files.CacheFile(path)
    header = file.header
    if header.get("key") != key:
        raise file.error("key", "is that of other weights")
    file.check_sample()
    file.load()
    try:
        offsets = header["offsets"]
        weights = [_weight(file, offsets, blob) for blob in header["blobs"]]
        tensors = {name: _tensor(file, offsets, entry) for name, entry in header["tensors"].items()}
        for name, number in header["modules"].items():
            parent, _, leaf = name.rpartition(".")
            place = decoder.get_submodule(name)
            if isinstance(place, HeadLinear | ExpertLinear | Router):
                module = _packed_stack(place, weights[number])
            else:
                module = _packed(place, weights[number], tensors.pop(f"{name}.bias", None))
            setattr(decoder.get_submodule(parent), leaf, module)
        for name, tensor in tensors.items():
            empty = decoder.get_parameter(name)
            if (empty.shape, empty.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"{name} has another shape")
            parent, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
        missing = [name for name, weight in decoder.named_parameters() if weight.is_meta]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        # Whatever a header that makes no sense leads to; a sound one leads to none of these.
        raise file.error("header", f"makes no sense: {error}") from error
    return decoder


def _packed_stack(module: HeadLinear | ExpertLinear | Router, weight: ops.PackedWeight | ops.PackedStack) -> nn.Module:
    """What stands in place of an empty map per head or expert, or a router, once its sizes are the weight's."""
    count = (weight.count,) if isinstance(weight, ops.PackedStack) else ()
    shape = (*count, weight.out_features, weight.in_features)
    if not isinstance(module.weight, Tensor) or module.weight.shape != shape:
        raise ValueError(f"a weight of {shape} stands where there is none of this shape")
    if isinstance(weight, ops.PackedStack):
        return PackedHeadLinear(weight) if isinstance(module, HeadLinear) else PackedExpertLinear(weight)
    assert isinstance(module, Router)
    module.pack(weight)
    return module


def _packed(module: nn.Module, weight: ops.PackedWeight | ops.PackedStack, bias: Tensor | None) -> nn.Module:
    """What stands in place of an empty module, once its sizes are those of the packed weight."""
    if isinstance(weight, ops.PackedStack):
        raise ValueError(f"{type(module).__name__} is no stack")
    members = list(module.children()) if isinstance(module, LinearGroup) else [module]
    linears = [member for member in members if isinstance(member, Linear)]
    sizes = [linear.out_features for linear in linears]
    if isinstance(module, Embedding):
        shape = tuple(module.weight.shape)
    elif linears and len(linears) == len(members):
        shape = (sum(sizes), linears[0].in_features)
    else:
        raise ValueError(f"{type(module).__name__} is never packed")
    if (weight.out_features, weight.in_features) != shape:
        raise ValueError(f"a weight of {weight.out_features} x {weight.in_features} stands for one of {shape}")
    has_bias = any(linear.bias is not None for linear in linears)
    if (bias is not None) != has_bias or (bias is not None and tuple(bias.shape) != shape[:1]):
        raise ValueError("a bias is missing, or has another size")
    if isinstance(module, Embedding):
        return PackedEmbedding(weight)
    if isinstance(module, LinearGroup):
        return PackedLinearGroup(weight, bias, dict(zip(dict(module.named_children()), sizes, strict=True)))
    return PackedLinear(weight, bias)


def _weight(
    file: cache_files.CacheFile, offsets: list[Any], blob: Mapping[str, Any]
) -> ops.PackedWeight | ops.PackedStack:
    piece = torch.from_numpy(file.piece(offsets[blob["piece"]], blob["bytes"]))
    kind = ops.PackedStack if "count" in blob["spec"] else ops.PackedWeight
    return kind.from_blob(piece, blob["spec"])


def _tensor(file: cache_files.CacheFile, offsets: list[Any], entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], torch.Size(entry["shape"])
    if any(size < 0 for size in shape):
        raise ValueError("a size is negative")
    piece = file.piece(offsets[entry["piece"]], shape.numel() * dtype.itemsize)
    return torch.from_numpy(piece).view(dtype).view(shape)
