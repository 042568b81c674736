"""The report of a comparison: figures and ratios as data, and as rows of a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from deepseek_r1.core.environment import machine_summary
from deepseek_r1.operate.compare.cases import Case, as_dict
from deepseek_r1.operate.compare.peers import Peer
from deepseek_r1.operate.compare.rounds import Outcome, Turn
from deepseek_r1.operate.compare.statistics import ratios, spread

KIND = "deepseek-benchmark --compare"


def report(
    peers: list[Peer], cases: list[Case], outcome: Outcome, settings: dict[str, Any], probe: str
) -> dict[str, Any]:
    """Everything that was found. Rates are tokens per second (starts per second for cold starts), bandwidths bytes/s.

    `probe` says how the bandwidth was measured. Each case has a row per engine: the spread of its figures over the
    rounds, the bandwidth beside them, and `ratio`, ours over theirs, where it is a peer's (above 1: ours is faster).
    """
    return {
        "kind": KIND,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": machine_summary(),
        "bandwidth_probe": probe,
        "engines": [_engine(peer, outcome) for peer in peers],
        "cases": [{**as_dict(case), "rows": _rows(case, peers, outcome)} for case in cases],
    }


def _engine(peer: Peer, outcome: Outcome) -> dict[str, Any]:
    about = outcome.about.get(peer.label, {})
    failed = {"failed": outcome.failed[peer.label]} if peer.label in outcome.failed else {}
    return {"label": peer.label, "model": peer.model, **about, **failed}


def _rows(case: Case, peers: list[Peer], outcome: Outcome) -> list[dict[str, Any]]:
    mine = {turn.round: turn for turn in outcome.turns.get((case.name, peers[0].label), [])}
    rows = []
    for peer in peers:
        turns = outcome.turns.get((case.name, peer.label), [])
        if not turns:
            continue
        row: dict[str, Any] = {"label": peer.label}
        for name in turns[0].figures:
            row[name] = spread([turn.figures[name] for turn in turns])
        row["bandwidth"] = spread([turn.bandwidth for turn in turns])
        row["agreement"] = spread([turn.agreement for turn in turns])
        if peer is not peers[0]:
            pairs = [(mine[turn.round], turn) for turn in turns if turn.round in mine]
            row["ratio"] = ratios(_rates([one for one, _ in pairs]), _rates([other for _, other in pairs]))
        row["turns"] = [{"round": turn.round, "bandwidth": turn.bandwidth, **turn.figures} for turn in turns]
        rows.append(row)
    return rows


def _rates(turns: list[Turn]) -> list[float]:
    return [turn.figures["rate"] for turn in turns]


HEADER = (
    "case",
    "engine",
    "tokens/s",
    "min to max",
    "first token s",
    "min to max",
    "ours / theirs",
    "min to max",
    "GB/s",
    "same",
)
TEXT = ("engine",)


def table_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The report as rows under `HEADER`, medians with their extremes."""
    rows: list[tuple[str, ...]] = []
    for case in report["cases"]:
        for index, row in enumerate(case["rows"]):
            rate, ratio = row["rate"], row.get("ratio")
            cold = case["phase"] == "cold"
            rows.append(
                (
                    case["words"] if index == 0 else "",
                    row["label"],
                    "-" if cold else _short(rate["median"]),
                    "-" if cold else _range(rate),
                    f"{row['first_token_seconds']['median']:.3f}",
                    "{min:.3f} to {max:.3f}".format(**row["first_token_seconds"]),
                    f"{ratio['median']:.2f}" if ratio else "-",
                    f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else "-",
                    f"{row['bandwidth']['median'] / 1e9:.1f}",
                    f"{row['agreement']['median']:.0%}" if ratio and not cold else "-",
                )
            )
    return rows


def _range(spread: dict[str, float]) -> str:
    return f"{_short(spread['min'])} to {_short(spread['max'])}"


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"
