"""The parts of R1-Lite's report, and the two forms of document that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from deepseek_r1.operate.runs.as_html import page
from deepseek_r1.operate.runs.as_html import table as html_table
from deepseek_r1.operate.runs.as_markdown import fenced, plain
from deepseek_r1.operate.runs.as_markdown import table as markdown_table
from deepseek_r1.operate.runs.rows import disarmed

MAX_SHOWN = 2000
"""Characters that are shown of what a model was asked or said."""


@dataclass(frozen=True)
class Heading:
    """Begins a section."""

    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells are text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """An SVG document, in `file` for the Markdown."""

    text: str
    file: str
    svg: str


@dataclass(frozen=True)
class Quoted:
    """What a model was asked, or said, as it is."""

    text: str


Part = Heading | Words | Table | Picture | Quoted


def as_markdown(title: str, parts: Sequence[Part]) -> str:
    """The document as Markdown; its pictures are files beside it."""
    return "\n\n".join([f"# {title}", *map(_markdown_of, parts)]) + "\n"


def as_html(title: str, parts: Sequence[Part]) -> str:
    """The document as one HTML page that loads nothing."""
    pictures = [part.svg for part in parts if isinstance(part, Picture)]
    return page(title, "\n".join(map(_html_of, parts)), pictures)


def _shown(text: str) -> str:
    text = str(disarmed(text))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _markdown_of(part: Part) -> str:
    match part:
        case Heading(text):
            return f"## {text}"
        case Words(text):
            return plain(text)
        case Table(header, rows):
            return markdown_table(header, rows)
        case Picture(text, file, _):
            return f"![{plain(text)}]({file})"
        case Quoted(text):
            return fenced(_shown(text))


def _html_of(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Words(text):
            return f"<p>{escape(text)}</p>"
        case Table(header, rows):
            return html_table(header, rows)
        case Picture(_, _, svg):
            return f'<div class="card">{svg}</div>'
        case Quoted(text):
            return f"<pre>{escape(_shown(text))}</pre>"
