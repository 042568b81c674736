"""Low-rank adapters of a decoder: made, read and written as PEFT does, merged into the weights, and taken off again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepseek_r1.config.adapters import NAME
from deepseek_r1.config.lora import ALL_LINEAR, LoraConfig
from deepseek_r1.core.errors import CheckpointError, ConfigError, UnsupportedError
from deepseek_r1.layers.linear import Linear, PackedLinear, PackedLinearGroup
from deepseek_r1.layers.lora import Factors, LoraGroup, LoraLinear
from deepseek_r1.layers.trained import TrainedLinear
from deepseek_r1.models.checkpoint.safetensors import open_safetensors, write_safetensors
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.formats import packed_bytes
from deepseek_r1.models.registry import FAMILIES
from deepseek_r1.models.shapes import parameter_shapes

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MOST_CONFIG_BYTES = 1 << 20

_SITE = re.compile(r"layers\.\d+\.(attention|mlp)(\.(?!base|adapters|members)\w+)*")


def sites(decoder: Decoder) -> dict[str, nn.Module]:
    """The linears of attention and MLP that can have an adapter, by dotted name; members of a group one by one."""
    found: dict[str, nn.Module] = {}
    for name, module in decoder.named_modules():
        if not _SITE.fullmatch(name):
            continue
        if isinstance(module, LoraGroup | PackedLinearGroup):
            found |= {f"{name}.{member}": module for member in module.names}
        elif isinstance(module, Linear | TrainedLinear | PackedLinear | LoraLinear):
            found[name] = module
    return found


def chosen_sites(decoder: Decoder, targets: tuple[str, ...]) -> list[str]:
    """The sites that `targets` name. Raises `ConfigError` for a target that names none."""
    there = list(sites(decoder))
    if ALL_LINEAR in targets:
        return there
    for target in targets:
        if not any(name.endswith(f".{target}") for name in there):
            known = sorted({name.rpartition(".")[2] for name in there})
            raise ConfigError(f"targets: no linear is called {target!r}", remedy=f"there are {', '.join(known)}")
    return [name for name in there if any(name.endswith(f".{target}") for target in targets)]


def add_adapter(decoder: Decoder, name: str, config: LoraConfig, *, seed: int = 0) -> list[str]:
    """Give the decoder a new adapter, which changes nothing yet: A is drawn, B is zeros. Returns its sites."""
    generator = torch.Generator().manual_seed(seed)
    chosen = chosen_sites(decoder, config.targets)
    for site in chosen:
        rows, columns = _size(decoder, site)
        bound = columns**-0.5  # He et al. 2015 with a slope of sqrt(5), as PEFT draws it
        a = torch.empty(config.r, columns).uniform_(-bound, bound, generator=generator)
        _place(decoder, site, name, a, torch.zeros(rows, config.r), config.scale, config.dropout)
    return chosen


def remove_adapter(decoder: Decoder, name: str) -> None:
    """Take an adapter off again; the sites stay, and cost nothing without one."""
    for held in _holders(decoder).values():
        if name in held:
            del held[name]


def factors(decoder: Decoder, name: str) -> dict[str, Factors]:
    """An adapter's factors by site."""
    found: dict[str, Factors] = {}
    for site, held in _holders(decoder).items():
        if name in held:
            part = held[name]
            assert isinstance(part, Factors)
            found[site] = part
    return found


def check_savable(decoder: Decoder) -> None:
    """Raise what `save_adapter` would raise for any adapter of this decoder: before it is trained, not after."""
    _stored_names(decoder)


def save_adapter(decoder: Decoder, name: str, directory: str | PathLike[str], config: LoraConfig, base: str) -> Path:
    """Write an adapter as PEFT does: `adapter_model.safetensors`, then `adapter_config.json`. Returns the directory.

    `base` says which model it belongs to. Raises `UnsupportedError` where the family's own files hold several of our
    linears as one, which a factor of its own for each does not fit.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stored = _stored_names(decoder)
    arrays: dict[str, Any] = {}
    halves: list[str] = []
    for site, part in factors(decoder, name).items():
        for factor, linear in (("lora_A", part.lora_A), ("lora_B", part.lora_B)):
            key = f"{PREFIX}{stored[site]}.{factor}.weight"
            # In the format that products read: the file is the policy, bit for bit, and not larger than it.
            tensor = linear.weight.detach().to(linear.dtype).contiguous()
            if linear.dtype is torch.bfloat16:
                halves.append(key)
                arrays[key] = tensor.view(torch.int16).numpy().view(np.uint16)
            else:
                arrays[key] = tensor.numpy()
    leaves = sorted({stored[site].rpartition(".")[2] for site in factors(decoder, name)})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": leaves,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_safetensors(directory / WEIGHTS_FILE, arrays, bf16_names=halves, metadata={"format": "pt"})
    partial = directory / f".{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / CONFIG_FILE)
    return directory


def load_adapter(decoder: Decoder, name: str, directory: str | PathLike[str]) -> LoraConfig:
    """Add an adapter from PEFT's files. Raises `CheckpointError` for files that don't fit the model.

    Raises `UnsupportedError` for what changes the mathematics and isn't built here (DoRA, biases, rslora, …).
    """
    directory = Path(directory)
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):  # which is where its factors are kept
        raise ConfigError(
            f"{name!r} is no name for the adapter in {directory}",
            remedy="use letters, digits, - and _, and no word that torch's modules have a meaning for",
        )
    config = read_adapter_config(directory)
    try:
        sites_by_stored = {stored: site for site, stored in _stored_names(decoder).items()}
    except UnsupportedError as error:
        raise UnsupportedError(f"{directory}: {error.message}", remedy=error.remedy) from None
    parts: dict[str, dict[str, Tensor]] = {}
    with open_safetensors(directory / WEIGHTS_FILE) as checkpoint:
        for key in checkpoint.tensors:
            stored, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
            site = sites_by_stored.get(stored)
            if site is None or factor not in ("lora_A", "lora_B"):
                raise CheckpointError(
                    checkpoint.path,
                    key,
                    "has no place in this model",
                    remedy="load the adapter over its own base model",
                )
            parts.setdefault(site, {})[factor] = torch.from_numpy(checkpoint.read(key)).float()
        if not parts:
            raise CheckpointError(checkpoint.path, "tensors", "are missing: the adapter changes nothing")
        for site, pair in parts.items():
            rows, columns = _size(decoder, site)
            shapes = {"lora_A": (config.r, columns), "lora_B": (rows, config.r)}
            for factor, shape in shapes.items():
                if factor not in pair or tuple(pair[factor].shape) != shape:
                    have = tuple(pair[factor].shape) if factor in pair else "missing"
                    problem = f"{factor} of {site} is {have}, and {shape} fits the model"
                    raise CheckpointError(checkpoint.path, factor, problem, remedy="load it over its own base model")
    for site, pair in parts.items():
        _place(decoder, site, name, pair["lora_A"], pair["lora_B"], config.scale, config.dropout)
    return config


def adapter_bytes(directory: str | PathLike[str], item_bytes: int) -> int:
    """Bytes that an adapter's factors take once loaded: masters, and what products read, `item_bytes` to a number.

    Reads headers only. Raises `CheckpointError`, `ModelNotFoundError` or `UnsupportedError` for files that can't be
    loaded over any model.
    """
    read_adapter_config(Path(directory))
    with open_safetensors(Path(directory) / WEIGHTS_FILE) as checkpoint:
        shapes = [info.shape for info in checkpoint.tensors.values() if len(info.shape) == 2]
    return sum(4 * rows * columns + packed_bytes(rows, columns, item_bytes) for rows, columns in shapes)


def read_adapter_config(directory: Path) -> LoraConfig:
    """The settings of PEFT's `adapter_config.json`. Raises `CheckpointError` or `UnsupportedError`."""
    path = directory / CONFIG_FILE
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MOST_CONFIG_BYTES))
    except OSError as error:
        raise CheckpointError(
            path, "file", f"cannot be read: {error.strerror}", remedy="give an adapter's folder"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(path, "file", "is not JSON") from None
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise UnsupportedError(f"{path}: peft_type is not LORA", remedy="LoRA is what can be loaded here")
    odd = [
        key
        for key in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
        if fields.get(key)
    ]
    if fields.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise UnsupportedError(f"{path}: {odd[0]} is not built here", remedy="train the adapter without it")
    targets = fields.get("target_modules")
    listed: Any = [targets] if isinstance(targets, str) else targets
    try:
        return LoraConfig(
            r=fields["r"], alpha=fields["lora_alpha"], dropout=fields.get("lora_dropout", 0.0), targets=tuple(listed)
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(path, "fields", f"make no sense: {error}") from None


def merge_adapter(decoder: Decoder, name: str) -> None:
    """Add an adapter to the weights themselves, for a decoder that is not packed, and take it off.

    Raises `ValueError` for packed weights: load the model with pack=False.
    """
    modules = dict(decoder.named_modules())  # members of a packed group are none
    for site, part in factors(decoder, name).items():
        holder = modules.get(site)
        if not isinstance(holder, LoraLinear) or not isinstance(holder.base, Linear):
            raise ValueError(f"{site} is packed: load the model with pack=False to merge an adapter")
        weight = holder.base.weight
        change = part.scale * (part.lora_B.weight.detach() @ part.lora_A.weight.detach())
        holder.base.weight = nn.Parameter((weight.detach().float() + change).to(weight.dtype), requires_grad=False)
    remove_adapter(decoder, name)


def _holders(decoder: Decoder) -> dict[str, nn.ModuleDict]:
    """Where adapters sit, by site."""
    found: dict[str, nn.ModuleDict] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, LoraLinear):
            found[name] = module.adapters
        elif isinstance(module, LoraGroup):
            found |= {f"{name}.{member}": module.of(member) for member in module.names}
    return found


def _place(decoder: Decoder, site: str, name: str, a: Tensor, b: Tensor, scale: float, dropout: float) -> None:
    """Put an adapter's factors at a site, which becomes one that can hold several."""
    parent_name, _, leaf = site.rpartition(".")
    parent = decoder.get_submodule(parent_name)
    if isinstance(parent, PackedLinearGroup):
        above, _, own = parent_name.rpartition(".")
        parent = LoraGroup(parent, parent.names, decoder.adapters)
        setattr(decoder.get_submodule(above), own, parent)
    if isinstance(parent, LoraGroup):
        held, dtype = parent.of(leaf), _dtype(parent.base)
    else:
        module = parent.get_submodule(leaf)
        if not isinstance(module, LoraLinear):
            module = LoraLinear(module, decoder.adapters)
            setattr(parent, leaf, module)
        held, dtype = module.adapters, _dtype(module.base)
    held[name] = Factors(a, b, scale, dropout, dtype).train(decoder.training)  # nothing is dropped but in training


def _dtype(base: nn.Module) -> torch.dtype:
    """What an adapter is computed in: float32 beside float32 weights, else bfloat16."""
    if isinstance(base, PackedLinear | PackedLinearGroup):
        plain = base.weight.spec.get("kind", "fp32") == "fp32" and base.weight.dtype is torch.float32
        return torch.float32 if plain else torch.bfloat16
    assert isinstance(base, Linear | TrainedLinear)
    return base.weight.dtype if isinstance(base, Linear) else base.dtype


def _size(decoder: Decoder, site: str) -> tuple[int, int]:
    return parameter_shapes(decoder.config)[f"{site}.weight"][:2]  # type: ignore[return-value]


def _stored_names(decoder: Decoder) -> dict[str, str]:
    """What the family's Hugging Face files call each site's linear."""
    family: Family = FAMILIES.load(decoder.config.family)
    shapes = parameter_shapes(decoder.config)
    there = set(sites(decoder))
    names: dict[str, str] = {}
    for weight in family.weights("safetensors", decoder.config, shapes):
        for ours in weight.ours:
            site = ours.removesuffix(".weight")
            if site not in there or not ours.endswith(".weight"):
                continue
            if len(weight.ours) > 1:
                raise UnsupportedError(
                    f"{weight.stored} holds {len(weight.ours)} linears in files of this family",
                    remedy="merge the adapter into the weights instead",
                )
            names[site] = weight.stored.removesuffix(".weight")
    return names


def trained_factors(decoder: Decoder, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """An adapter's parameters, by names that don't depend on how the base is held."""
    for site, part in factors(decoder, name).items():
        yield f"{site}.lora_A", part.lora_A.weight
        yield f"{site}.lora_B", part.lora_B.weight
