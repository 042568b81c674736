"""The tiny model's report (report.json, report.md) and the picture of how evenly its experts are used (SVG).

    python recipes/tiny_r1_report.py OUT [OUT …] --svg FILE

draws several finished runs into one picture.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepseek_r1.core.environment import machine_summary, package_versions
from deepseek_r1.models.shapes import active_count, parameter_count
from tiny_r1_tokenizer import write_text
from tiny_r1_training import Run

COLOURS = ("#2f6fde", "#d9822b", "#3a9d5d", "#a44fc4")
LABELS = {"bias": "bias", "auxiliary": "auxiliary loss", "entropy": "entropy loss", "none": "no balancing"}
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP = 380, 240, 64, 72, 80


def write_report(out: Path, run: Run, found: dict[str, Any]) -> str:
    """Write report.json, report.md and utilisation.svg into `out`. Returns report.md's text."""
    report = {
        "settings": asdict(run.settings),
        "steps_done": run.step,
        "parameters": parameter_count(run.decoder.config),
        "active_parameters": active_count(run.decoder.config),
        "held_out": found,
        "history": run.history,
        "machine": machine_summary(),
        "versions": package_versions(("torch", "tokenizers", "deepseek-r1-toolkit")),
    }
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "utilisation.svg", picture([report]))
    text = _words(report)
    write_text(out / "report.md", text)
    return text


def _words(report: dict[str, Any]) -> str:
    settings, found = report["settings"], report["held_out"]
    lines = [
        "# The R1-shaped tiny model",
        "",
        f"{report['parameters']:,} parameters, of which a token uses {report['active_parameters']:,}. Step "
        f"{report['steps_done']} of {settings['steps']}, seed {settings['seed']}, balancing: {settings['balance']}.",
        f"Held-out loss {found['loss']:.4f} per token, {found['mtp_loss']:.4f} one token further (MTP module).",
        "",
        "| task | held-out problems solved |",
        "|---|---|",
        *(f"| {task} | {share:.0%} |" for task, share in found["accuracy"].items()),
        "",
        "Utilisation is the entropy of the experts' loads over that of equal loads, on held-out text.",
        "",
        "| layer | utilisation | tokens of each expert |",
        "|---|---|---|",
        *(f"| {name} | {value:.4f} | {found['loads'][name]} |" for name, value in found["utilisation"].items()),
        f"| mean | {found['mean_utilisation']:.4f} | |",
    ]
    return "\n".join(lines) + "\n"


def picture(reports: list[dict[str, Any]]) -> str:
    """Two panels as SVG: utilisation of each layer on held-out text, and its mean over the layers during training."""
    lowest = min(
        min(value for report in reports for value in report["held_out"]["utilisation"].values()),
        min((_mean(line) for report in reports for line in report["history"]), default=1.0),
    )
    floor = min(0.9, int(lowest * 10) / 10)
    width, height = 2 * PANEL_WIDTH + LEFT + GAP + 24, PANEL_HEIGHT + TOP + 84
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(LEFT, 24, "Utilisation of the experts (normalised entropy of their loads; 1 = perfectly even)", size=15),
        *_axes(LEFT, floor, f"held-out text, by layer (axis from {floor:.1f})"),
        *_bars(reports, floor),
        *_axes(LEFT + PANEL_WIDTH + GAP, floor, "training, mean of the layers, by step"),
        *_curves(reports, floor),
    ]
    for index, report in enumerate(reports):
        x = LEFT + 170 * index
        parts.append(f'<rect x="{x}" y="{height - 24}" width="12" height="12" fill="{COLOURS[index]}"/>')
        parts.append(_text(x + 18, height - 14, LABELS[report["settings"]["balance"]]))
    return "\n".join([*parts, "</svg>", ""])


def _axes(left: float, floor: float, title: str) -> list[str]:
    parts = [_text(left, TOP - 24, title)]
    ticks = round((1 - floor) * 10)
    for tick in range(ticks + 1):
        value = floor + tick / 10
        y = _height(value, floor)
        parts.append(f'<path d="M{left} {y:.1f}h{PANEL_WIDTH}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y + 4, f"{value:.1f}", anchor="end"))
    return parts


def _bars(reports: list[dict[str, Any]], floor: float) -> list[str]:
    parts = []
    names = list(reports[0]["held_out"]["utilisation"])
    place = PANEL_WIDTH / len(names)
    bar = 0.7 * place / len(reports)
    for position, name in enumerate(names):
        middle = LEFT + (position + 0.5) * place
        parts.append(_text(middle, TOP + PANEL_HEIGHT + 18, name, anchor="middle"))
        for index, report in enumerate(reports):
            value = report["held_out"]["utilisation"][name]
            x, y = middle + (index - len(reports) / 2) * bar, _height(value, floor)
            tall = TOP + PANEL_HEIGHT - y
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" height="{tall:.1f}" fill="{COLOURS[index]}"/>'
            )
            parts.append(_text(x + bar / 2 - 1, y - 4, f"{value:.4f}", anchor="middle", size=10))
    return parts


def _curves(reports: list[dict[str, Any]], floor: float) -> list[str]:
    left = LEFT + PANEL_WIDTH + GAP
    last = max((line["step"] for report in reports for line in report["history"]), default=1)
    parts = [
        _text(left, TOP + PANEL_HEIGHT + 18, "0", anchor="middle"),
        _text(left + PANEL_WIDTH, TOP + PANEL_HEIGHT + 18, f"{last:,}", anchor="middle"),
    ]
    for index, report in enumerate(reports):
        points = " ".join(
            f"{left + PANEL_WIDTH * line['step'] / last:.1f},{_height(_mean(line), floor):.1f}"
            for line in report["history"]
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[index]}" stroke-width="1.5"/>')
    return parts


def _mean(line: dict[str, Any]) -> float:
    values = line["utilisation"].values()
    return float(sum(values) / len(values))


def _height(value: float, floor: float) -> float:
    return TOP + PANEL_HEIGHT * (1 - (value - floor) / (1 - floor))


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def main() -> None:
    """Draw finished runs into one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="OUT", type=Path, nargs="+", help="folders that tiny_r1.py has finished")
    parser.add_argument("--svg", type=Path, required=True, help="the picture to write")
    options = parser.parse_args()
    write_text(options.svg, picture([json.loads((run / "report.json").read_text()) for run in options.runs]))


if __name__ == "__main__":
    main()
