"""How near a model comes to the machine's limits in each phase: what it must read and compute, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.engine import memory
from deepseek_r1.kernels.built import native_kernels, path_name
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.formats import checkpoint_types, resolve
from deepseek_r1.models.registry import read_config
from deepseek_r1.models.shapes import active_count
from deepseek_r1.operate.compare.cases import Case, figures, prompts
from deepseek_r1.operate.compare.peers import Peer
from deepseek_r1.operate.compare.process import Worker
from deepseek_r1.operate.compare.statistics import Spread, spread
from deepseek_r1.operate.limits import Limits


@dataclass(frozen=True)
class Model:
    """What the arithmetic needs of a model as it is served: shape, formats, and how the file's weights are kept."""

    config: ModelConfig
    precision: DeepSeekConfig
    storage: memory.Storage


def open_model(path: Path, precision: str) -> Model:
    """The model at `path` in `precision`, "auto" resolved. Raises the errors of opening a checkpoint."""
    native = native_kernels()
    with open_checkpoint(path) as checkpoint:
        config = memory.served(read_config(checkpoint))
        formats = resolve(parse_precision(precision), checkpoint, bf16=native)
        return Model(config, formats, memory.Storage(native, checkpoint_types(checkpoint, config)))


@dataclass(frozen=True)
class Work:
    """What a phase takes at least: bytes read, operations (a multiply-add is two), and the tokens it gives."""

    read: float
    operations: float
    tokens: int


def work(model: Model, case: Case) -> Work:
    """The least a phase of `case` takes: prefill from nothing to the first token, decode after every first token.

    Reads: the weights once per step (of experts, the share that so many tokens are expected to choose when all are as
    likely), keys and values before each token. Operations: the linears' and attention's.
    """
    config = model.config
    if case.phase == "prefill":
        tokens = case.prompt_tokens
        steps = -(-tokens // memory.MAX_STEP_TOKENS)
        read = steps * _weights_read(model, min(tokens, memory.MAX_STEP_TOKENS))
        head = 2 * config.vocab_size * config.hidden_size
        linear = tokens * (_linear_operations(config) - head) + head  # only the last token needs the output layer
        attention = math.fsum(_attention_operations(config, keys) for keys in range(1, tokens + 1))
        return Work(read, linear + attention, tokens)
    steps = case.new_tokens - 1
    weights = _weights_read(model, case.prompts)
    read, operations = float(steps * weights), 0.0
    for step in range(1, steps + 1):
        before = case.prompt_tokens + step
        read += case.prompts * memory.kv_read_bytes(config, model.precision, before)
        operations += case.prompts * (_linear_operations(config) + _attention_operations(config, before))
    return Work(read, operations, steps * case.prompts)


def _weights_read(model: Model, tokens: int) -> float:
    """Bytes of weights that one step of so many tokens reads."""
    config = model.config
    one = memory.read_bytes(config, model.precision, model.storage)
    if config.moe is None or tokens == 1:
        return one
    share = config.moe.active / config.moe.experts
    whole = replace(config, moe=replace(config.moe, active=config.moe.experts))
    every = memory.read_bytes(whole, model.precision, model.storage)
    experts = (every - one) / (1 - share) if share < 1 else 0.0
    return one + experts * (1 - (1 - share) ** tokens - share)


def _linear_operations(config: ModelConfig) -> float:
    """Operations of all products with weights for one token, the output layer included: two per weight passed."""
    weights = active_count(config)
    # The embedding's row is looked up; a tied table counts as the output layer, once.
    return 2.0 * (weights - (0 if config.tie_embeddings else config.hidden_size))


def _attention_operations(config: ModelConfig, keys: int) -> float:
    """Operations of one token's scores and weighted values over `keys` keys, in the layers that keep all of them."""
    layers = sum(config.mixer(layer) == "attention" for layer in range(config.layers))
    if config.mla is not None:
        width = 2 * config.mla.kv_rank + config.mla.rope_dim
        return 2.0 * layers * config.heads * width * keys
    return 4.0 * layers * config.heads * config.head_dim * keys


@dataclass(frozen=True)
class Phase:
    """One phase: its work, and over the rounds the spread of seconds, tokens/s and shares of the limits (1 is all).

    `of_bandwidth` is against the bandwidth of the same minute, `of_peak` against the linears' format, `of_bound` the
    least possible time (whichever of the two limits takes longer) over the time it took.
    """

    case: Case
    work: Work
    format: str
    seconds: Spread
    rate: Spread
    bandwidth: Spread
    of_bandwidth: Spread
    of_peak: Spread
    of_bound: Spread


def peak_format(precision: DeepSeekConfig) -> str:
    """The format whose peak bounds this precision: 4-bit weights are multiplied as INT8, on the AMX path as bf16."""
    dtype = str(precision.dtype_of("linear"))
    return ("bf16" if path_name() == "amx" else "int8") if dtype == "int4" else dtype


def measure(
    peer: Peer,
    model: Model,
    cases: list[Case],
    limits: Limits,
    *,
    rounds: int,
    seed: int,
    threads: int,
    bandwidth: Callable[[], float],
    say: Callable[..., None],
) -> tuple[list[Phase], dict[str, Any]]:
    """Run every case `rounds` times after a warm-up; the phases, and what the worker says about itself."""
    found: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    with Worker(peer) as worker:
        about = worker.load(threads)
        for number in range(rounds + 1):
            for case in cases:
                say("roofline", round=number, case=case.name)
                probe = bandwidth()
                answer = worker.run(prompts(case, seed, number, model.config.vocab_size), case.new_tokens)
                if number:
                    found[case.name].append((phase_seconds(case, figures(case, answer["seconds"])), probe))
    format = peak_format(model.precision)
    return [_phase(case, work(model, case), format, found[case.name], limits) for case in cases], about


def phase_seconds(case: Case, found: dict[str, float]) -> float:
    """The time in which the phase's work was done, from the figures of its run."""
    if case.phase == "prefill":
        return found["first_token_seconds"]
    if case.phase == "decode":
        return (case.new_tokens - 1) / found["rate"]
    # Some prompts get their first token before others; from when all have it, the rate is that of decoding alone.
    return case.prompts * (case.new_tokens - 1) / found["decode_rate"]


def _phase(case: Case, done: Work, format: str, runs: list[tuple[float, float]], limits: Limits) -> Phase:
    peak = limits.peaks[format]
    return Phase(
        case,
        done,
        format,
        seconds=spread([seconds for seconds, _ in runs]),
        rate=spread([done.tokens / seconds for seconds, _ in runs]),
        bandwidth=spread([probe for _, probe in runs]),
        of_bandwidth=spread([done.read / seconds / probe for seconds, probe in runs]),
        of_peak=spread([done.operations / seconds / peak for seconds, _ in runs]),
        of_bound=spread([max(done.read / probe, done.operations / peak) / seconds for seconds, probe in runs]),
    )
