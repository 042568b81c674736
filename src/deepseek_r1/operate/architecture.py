"""A model's parts with their parameters, repeated layers together: what `models inspect` lists and draws. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from deepseek_r1.models.config import ModelConfig, MoEConfig, RopeConfig
from deepseek_r1.models.shapes import Shapes, active_count, parameter_count, parameter_shapes

_MAX_PERIOD = 16

Part = dict[str, Any]


def describe_architecture(config: ModelConfig) -> dict[str, Any]:
    """The parts of a decoder from its first to its last, as plain data.

    `parts` are dicts with kind ("embedding", "layers", "norm", "output" or "prediction"), name, words and the
    parameters `total` and `active` (those that one token passes through). A part of kind "layers" stands for
    `repeat` times its `layers`: dicts with count, first and name, and the `parts`, `total` and `active` of ONE layer.
    `parameters` are those of the whole model, prediction modules apart.
    """
    shapes = parameter_shapes(config)
    hidden, vocabulary = f"{config.hidden_size:,}", f"{config.vocab_size:,}"
    table = config.vocab_size * config.hidden_size
    tied = config.tie_embeddings
    # Of a table that isn't the output layer's too, a token reads its row.
    row = table if tied else config.hidden_size
    parts = [_part("embedding", "token embedding", [f"{vocabulary} tokens x {hidden}"], table, row)]
    parts += _layers(config, shapes)
    parts.append(_part("norm", "last norm", [f"{hidden} wide"], config.hidden_size))
    words = "the embedding's table again" if tied else f"{hidden} x {vocabulary} tokens"
    parts.append(_part("output", "output layer", [words], 0 if tied else table))
    modules = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("mtp."))
    if modules:
        words = "guess one token further; not loaded for serving"
        name = f"{config.mtp_layers} x prediction module"
        parts.append(_part("prediction", name, [words], modules, 0))
    return {
        "family": config.family,
        "layers": config.layers,
        "context": config.max_position,
        "parameters": {
            "total": parameter_count(config) - modules,
            "active": active_count(config),
            "prediction_modules": modules,
        },
        "parts": parts,
    }


def _part(kind: str, name: str, words: list[str], total: int, active: int | None = None) -> Part:
    active = total if active is None else active
    return {"kind": kind, "name": name, "words": words, "total": total, "active": active}


def _layers(config: ModelConfig, shapes: Shapes) -> list[Part]:
    keys = [
        (config.mixer(layer), config.has_experts(layer), config.windows[layer], config.layer_ropes[layer])
        for layer in range(config.layers)
    ]
    kinds = {key: _layer(config, shapes, keys.index(key)) for key in set(keys)}
    parts = []
    for first, length, repeat in periods(keys):
        layers = []
        for key, run in groupby(keys[first : first + length]):
            count = len(list(run))
            layers.append({"count": count, "first": first, **kinds[key]})
            first += count
        total, active = (repeat * sum(layer["count"] * layer[key] for layer in layers) for key in ("total", "active"))
        name = ", ".join(f"{layer['count']} x {layer['name']}" for layer in layers)
        name = name if repeat == 1 else f"{repeat} x ({name})"
        parts.append(_part("layers", name, [], total, active) | {"repeat": repeat, "layers": layers})
    return parts


def periods(keys: Sequence[object]) -> list[tuple[int, int, int]]:
    """(first, length, repeats) of the pieces that `keys` consist of, from the first to the last.

    A piece is a run of equal keys (which repeats once), or, where that reaches further, a pattern that repeats.
    """
    found = []
    first = 0
    while first < len(keys):
        length, repeats = _repeats(keys, first, 1), 1
        for period in range(2, _MAX_PERIOD + 1):
            times = _repeats(keys, first, period)
            if times > 1 and period * times > length * repeats:
                length, repeats = period, times
        found.append((first, length, repeats))
        first += length * repeats
    return found


def _repeats(keys: Sequence[object], first: int, period: int) -> int:
    count = 1
    while keys[first : first + period] == keys[first + count * period : first + (count + 1) * period]:
        count += 1
    return count


def _layer_name(config: ModelConfig, layer: int) -> str:
    """What sets this layer apart from the model's others."""
    words = []
    if len(set(config.mixers)) > 1:
        words.append({"attention": "attention", "ring": "ring", "delta": "gated-delta"}[config.mixer(layer)])
    if len(set(config.windows)) > 1 and config.mixer(layer) == "attention":
        words.append("global" if config.windows[layer] is None else "local")
    if config.moe is not None:
        words.append("MoE" if config.has_experts(layer) else "dense")
    words.append("layer")
    if len(set(config.layer_ropes)) > 1 and config.layer_ropes[layer] is None:
        words.append("without rope")
    return " ".join(words)


def _layer(config: ModelConfig, shapes: Shapes, layer: int) -> Part:
    """One layer: its attention, its MLP or experts, and its norms."""
    prefix = f"layers.{layer}."
    own = {name.removeprefix(prefix): math.prod(size) for name, size in shapes.items() if name.startswith(prefix)}
    attention = sum(size for name, size in own.items() if name.startswith("attention."))
    mlp = sum(size for name, size in own.items() if name.startswith("mlp."))
    norms = sum(own.values()) - attention - mlp
    parts = [_part("attention", "attention", _attention_words(config, layer), attention)]
    if config.moe is not None and config.has_experts(layer):
        experts = sum(size for name, size in own.items() if ".experts." in name)
        active = mlp - experts + experts // config.moe.experts * config.moe.active
        part = _part("experts", "experts", _expert_words(config, config.moe), mlp, active)
        shared = -(-config.moe.shared_hidden_size // config.moe.hidden_size)
        parts.append(part | {"experts": config.moe.experts, "chosen": config.moe.active, "shared": shared})
    else:
        words = f"{config.intermediate_size:,} wide, gated {_ACTIVATIONS[config.activation]}"
        parts.append(_part("mlp", "MLP", [words + (", biases" if config.mlp_bias else "")], mlp))
    place = {"pre": "before", "post": "after", "sandwich": "before and after"}[config.norms]
    parts.append(_part("norms", "norms", [f"{place} attention and MLP"], norms))
    sums = {key: sum(part[key] for part in parts) for key in ("total", "active")}
    return {"name": _layer_name(config, layer), **sums, "parts": parts}


_ACTIVATIONS = {"silu": "SiLU", "gelu_tanh": "GELU"}


def _attention_words(config: ModelConfig, layer: int) -> list[str]:
    delta, ring = config.delta, config.ring
    if config.mixer(layer) == "delta" and delta is not None:
        heads = f"{delta.value_heads} heads of {delta.value_dim}, keys of {delta.key_heads} x {delta.key_dim}"
        return [heads, f"gated delta rule: a state, not keys; convolution of {delta.conv_kernel}"]
    if config.mla is not None:
        mla = config.mla
        first = f"{config.heads} heads, latent {mla.kv_rank:,} + {mla.rope_dim}"
        first += "" if mla.q_rank is None else f", queries {mla.q_rank:,}"
    elif config.kv_heads == config.heads:
        first = f"{config.heads} heads of {config.head_dim}"
    else:
        first = f"{config.heads} heads of {config.head_dim}, keys and values of {config.kv_heads}"
    window, rope = config.windows[layer], config.layer_ropes[layer]
    options = ["all tokens before" if window is None else f"window of {window:,} tokens"]
    if config.mixer(layer) == "ring" and ring is not None:
        every = "" if ring.global_every is None else f" + 1 in {ring.global_every}"
        options = [f"ring of {ring.window:,} tokens{every}"]
    options.append("no rope" if rope is None else _rope_words(config, config.ropes[rope]))
    if config.qk_norm is not None:
        options.append("norms on q and k")
    if config.qkv_bias or config.output_bias:
        options.append("biases")
    return [first, ", ".join(options)]


def _rope_words(config: ModelConfig, rope: RopeConfig) -> str:
    words = f"rope {rope.theta:,.0f}"
    if config.mla is None and rope.dim != config.head_dim:
        words += f" on {rope.dim} of {config.head_dim}"
    if rope.scaling != "none":
        words += f" {rope.scaling} x {rope.factor:g}"
    elif rope.frequency_divisors is not None:
        words += " with a divisor for each frequency"
    return words


def _expert_words(config: ModelConfig, moe: MoEConfig) -> list[str]:
    first = f"{moe.active} of {moe.experts}"
    if moe.shared_hidden_size:
        count, rest = divmod(moe.shared_hidden_size, moe.hidden_size)
        first += f" + {moe.shared_hidden_size:,} wide shared" if rest else f" + {count} shared"
    second = f"gated {_ACTIVATIONS[config.activation]}, {moe.score} scores"
    if moe.groups > 1:
        second += f", best {moe.active_groups} of {moe.groups} groups"
    words = [f"{first}, {moe.hidden_size:,} wide", second]
    return [*words, "balanced by a bias"] if moe.bias else words
