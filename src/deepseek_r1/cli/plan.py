"""The verb `plan`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING

from deepseek_r1.cli.models import pairs
from deepseek_r1.cli.terminal import size, table, visible
from deepseek_r1.config.plan import PlanConfig

if TYPE_CHECKING:
    from deepseek_r1.operate.plan import Estimate, Plan


def plan_model(config: PlanConfig) -> int:
    """Print what a model would take, and how fast it could be."""
    from deepseek_r1.operate.plan import plan

    found = plan(
        config.model,
        memory_bytes=config.memory,
        context=config.context,
        concurrent=config.concurrent,
        bandwidth=None if config.bandwidth is None else config.bandwidth * 1e9,
    )
    if config.json:
        estimates = [{**dataclasses.asdict(each), "fits": each.fits} for each in found.estimates]
        print(json.dumps({**dataclasses.asdict(found), "path": str(found.path), "estimates": estimates}, indent=2))
    else:
        print(visible(_page(found)))
    return 0


def _page(plan: Plan) -> str:
    parameters = f"{plan.parameters:,}"
    if plan.active_parameters != plan.parameters:
        parameters += f", {plan.active_parameters:,} active for each token"
    head = {
        "model": plan.model,
        "path": f"{plan.path} ({'a configuration, no weights' if plan.format == 'config' else plan.format})",
        "family": f"{plan.family}, {plan.layers} layers, context of {plan.max_position:,} tokens",
        "parameters": parameters,
    }
    if plan.prediction_parameters:
        head["besides"] = f"{plan.prediction_parameters:,} in prediction modules, not loaded for serving"
    if plan.file_bytes is not None:
        head["on disk"] = size(plan.file_bytes) + (", by its configuration" if plan.format == "config" else "")
    head["memory"] = f"{size(plan.memory_bytes)}, {'as given' if plan.memory_given else 'free now'}"
    head["bandwidth"] = f"{plan.bandwidth / 1e9:.1f} GB/s, {'as given' if plan.bandwidth_given else 'measured'}"
    requests = "1 request" if plan.concurrent == 1 else f"{plan.concurrent} requests"
    head["asked for"] = f"{requests} of {plan.context:,} tokens"
    context = f"tokens/s at {plan.context:,} tokens"
    rows = [
        ("weights", [size(each.weights_bytes) for each in plan.estimates]),
        ("weights read per token", [size(each.read_bytes_per_token) for each in plan.estimates]),
        ("keys and values per token", [f"{each.kv_bytes_per_token:,} B" for each in plan.estimates]),
        ("tokens that fit beside the weights", [f"{each.kv_tokens:,}" for each in plan.estimates]),
        ("memory to give", [size(each.needed_bytes) for each in plan.estimates]),
        ("peak of the engine's process", [size(each.peak_bytes) if each.peak_bytes else "" for each in plan.estimates]),
        ("fits", [_fits(each) for each in plan.estimates]),
        ("tokens/s at most", [_rate(each.tokens_per_second) for each in plan.estimates]),
        (context, [_rate(each.tokens_per_second_at_context) for each in plan.estimates]),
    ]
    if any(each.slot_bytes_per_request for each in plan.estimates):
        slots = [size(each.slot_bytes_per_request) for each in plan.estimates]
        rows.insert(3, ("rings and states per request", slots))
    figures = table(("", *(_title(each) for each in plan.estimates)), [(name, *cells) for name, cells in rows])
    notes = [
        f"{each.name}: {size(each.missing_bytes)} are missing. {each.way_out[0].upper()}{each.way_out[1:]}."
        for each in plan.estimates
        if not each.fits
    ]
    notes += [f"serve it: {command}" for command in _commands(plan)]
    notes.append(
        "tokens/s: an upper bound for one request, set by memory bandwidth: each token reads the active weights and the"
        "\nkeys and values before it. Computing takes time besides."
    )
    if any(each.name == "on disk" for each in plan.estimates):
        notes.append("on disk: as if everything were computed in the form of the file.")
    return "\n\n".join([pairs(head), figures, "\n".join(notes)])


def _commands(plan: Plan) -> list[str]:
    """How to serve the first form that fits, with the memory that was planned for it."""
    for each in plan.estimates:
        if each.fits and each.peak_bytes is not None and plan.format != "config":
            words = ["deepseek-r1 serve", shlex.quote(plan.model), "--precision", each.name]
            words += ["--memory", f"{-(-each.needed_bytes >> 20)}MiB", "--max-concurrent", str(plan.concurrent)]
            return [" ".join(words)]
    return []


def _title(estimate: Estimate) -> str:
    return estimate.name if estimate.name != "on disk" else f"on disk ({', '.join(estimate.stored_as[:2])})"


def _fits(estimate: Estimate) -> str:
    """On disk it would fit, if it were computed in that form."""
    if not estimate.fits:
        return "no"
    return "would" if estimate.peak_bytes is None else "yes"


def _rate(rate: float) -> str:
    return f"{rate:,.1f}" if rate >= 10 else f"{rate:.2g}"
