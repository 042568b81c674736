"""The comparison itself: every case in rounds, in each round every engine in turn, the others stopped meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.operate.compare.cases import Case, agreement, figures, prompts
from deepseek_r1.operate.compare.peers import Peer
from deepseek_r1.operate.compare.process import Worker

WARM_UP = 1
"""Rounds at the start that are not counted: caches and compiled shapes are made in them."""

Say = Callable[..., None]


@dataclass
class Turn:
    """What one engine did in one round of a case, and the bandwidth (bytes/s) measured just before it."""

    round: int
    figures: dict[str, float]
    bandwidth: float
    agreement: float


@dataclass
class Outcome:
    """All turns by (case, label), what each worker says about itself, and who dropped out with what error."""

    turns: dict[tuple[str, str], list[Turn]] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def compare(
    peers: list[Peer],
    cases: list[Case],
    *,
    rounds: int,
    seed: int,
    vocab_size: int,
    threads: int,
    bandwidth: Callable[[], float],
    say: Say,
) -> Outcome:
    """Run `cases` with `peers`, of which the first is ours: `rounds` counted rounds after one that warms up.

    A peer that fails is left out from then on and named in `failed`. Raises `DeepSeekError` when our own worker fails.
    """
    outcome = Outcome()
    for case in cases:
        if case.phase == "cold":
            _cold(peers, case, seed, vocab_size, threads, bandwidth, outcome, say)
    warm = [case for case in cases if case.phase != "cold"]
    with contextlib.ExitStack() as stack:
        workers = []
        for peer in _left(peers, outcome) if warm else []:
            say("load", peer=peer.label)
            worker = stack.enter_context(Worker(peer))
            with _drops(worker.peer, peers, outcome, say), worker.turn():
                outcome.about[peer.label] = worker.load(threads)
                workers.append(worker)
        for number in range(WARM_UP + rounds) if warm else []:
            for case in warm:
                _turns(workers, case, number, peers, (seed, vocab_size), bandwidth, outcome, say)
    return outcome


def _turns(
    workers: list[Worker],
    case: Case,
    number: int,
    peers: list[Peer],
    drawn: tuple[int, int],
    bandwidth: Callable[[], float],
    outcome: Outcome,
    say: Say,
) -> None:
    """One case with every worker in turn; who begins goes round, so that no engine always follows the same one."""
    seed, vocab_size = drawn
    ids = prompts(case, seed, number, vocab_size)
    first: list[list[int]] = []
    answers: dict[str, tuple[dict[str, float], float, list[list[int]]]] = {}
    shift = number % len(workers) if workers else 0
    for worker in workers[shift:] + workers[:shift]:
        label = worker.peer.label
        if label in outcome.failed:
            continue
        say("compare", round=number, case=case.name, peer=label)
        with _drops(worker.peer, peers, outcome, say):
            probe = bandwidth()
            with worker.turn():
                answer = worker.run(ids, case.new_tokens)
            answers[label] = figures(case, answer["seconds"]), probe, answer["tokens"]
            if worker.peer is peers[0]:
                first = answer["tokens"]
    if number < WARM_UP:
        return
    for label, (found, probe, tokens) in answers.items():
        turn = Turn(number - WARM_UP, found, probe, agreement(first, tokens))
        outcome.turns.setdefault((case.name, label), []).append(turn)


def _cold(
    peers: list[Peer],
    case: Case,
    seed: int,
    vocab_size: int,
    threads: int,
    bandwidth: Callable[[], float],
    outcome: Outcome,
    say: Say,
) -> None:
    """From before the process is started until its first token is here; files are in the page cache after the first."""
    for number in range(WARM_UP + (case.repeats or 1)):
        for peer in _left(peers, outcome):
            say("compare", round=number, case=case.name, peer=peer.label)
            with _drops(peer, peers, outcome, say):
                probe = bandwidth()
                with Worker(peer) as worker:
                    outcome.about[peer.label] = worker.load(threads)
                    worker.run(prompts(case, seed, number, vocab_size), case.new_tokens, warm=False)
                    seconds = time.perf_counter() - worker.started
                if number >= WARM_UP:
                    found = {"first_token_seconds": seconds, "seconds": seconds, "rate": 1 / seconds}
                    turn = Turn(number - WARM_UP, found, probe, 1.0)
                    outcome.turns.setdefault((case.name, peer.label), []).append(turn)


def _left(peers: list[Peer], outcome: Outcome) -> list[Peer]:
    return [peer for peer in peers if peer.label not in outcome.failed]


@contextlib.contextmanager
def _drops(peer: Peer, peers: list[Peer], outcome: Outcome, say: Say) -> Iterator[None]:
    """A peer that fails drops out; without our own there is nothing to compare."""
    try:
        yield
    except DeepSeekError as error:
        if peer is peers[0]:
            raise
        outcome.failed[peer.label] = str(error)
        say("failed", peer=peer.label, error=error.message)
