"""Reports as Markdown: what a run's texts contain stays text, and curves are links to SVG files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from deepseek_r1.operate.runs.contents import EVALUATION_HEADER, Contents, Pairs, rollout_facts

# Entities, for a backslash does not stop every renderer from making a link of a bare address.
_MARKS = re.compile(r"[&<>|`*\[\]~$\\]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def as_markdown(contents: Contents) -> str:
    """The report; its pictures are those of `pictures`."""
    return "\n\n".join(_parts(contents)) + "\n"


def pictures(contents: Contents) -> dict[str, str]:
    """The SVG documents that the Markdown shows, by their files' names."""
    files = {f"report-{curve.slug}.svg": curve.svg for curve in contents.curves}
    return files | ({"report.data.svg": contents.data_svg} if contents.data_svg else {})


def _parts(contents: Contents) -> Iterator[str]:
    yield f"# {plain(contents.title)}"
    yield from (f"Note: {plain(problem)}" for problem in contents.problems)
    yield _pairs(contents.summary)
    if contents.curves:
        yield "## Curves"
        yield "\n".join(f"![{plain(curve.name)}](report-{curve.slug}.svg)" for curve in contents.curves)
    if contents.evaluation:
        yield "## Evaluation"
        yield table(EVALUATION_HEADER, contents.evaluation)
    if contents.rollouts:
        yield "## Samples of rollouts"
        yield "Of the first step and of the last one, from low rewards to high."
        for row in contents.rollouts:
            yield f"### {plain(rollout_facts(row))}"
            if row.error:
                yield f"Error: {plain(row.error)}"
            yield fenced(row.prompt)
            yield fenced(row.text)
    if contents.data_text:
        yield "## Data"
        yield fenced(contents.data_text)
        yield "![Lengths of the examples](report.data.svg)"
    for name, pairs in (
        ("Configuration", contents.recipe),
        ("Machine", contents.machine),
        ("Versions", contents.versions),
    ):
        if pairs:
            yield f"## {name}"
            yield _pairs(pairs)


def plain(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would take for its own."""
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", " ".join(text.split()))


def fenced(text: str) -> str:
    """`text` as a block of code, between fences that it doesn't contain."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _pairs(pairs: Pairs) -> str:
    return table(("", ""), pairs)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the cells are text, and made plain here."""
    names = [plain(name) for name in header]
    lines = [names, ["---"] * len(names), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
