"""Reports as one HTML page: pictures inside it, no scripts, and a policy that lets nothing be loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from xml.etree import ElementTree

from deepseek_r1.operate.runs.contents import EVALUATION_HEADER, Contents, Pairs, rollout_facts
from deepseek_r1.operate.runs.rows import Rollout

_STYLE = """
:root { color-scheme: light dark;
--ground: #f7f7f8; --card: #ffffff; --ink: #20242c; --quiet: #5b6472; --line: #d5d9e0; }
@media (prefers-color-scheme: dark) {
:root { --ground: #16181d; --card: #1f232b; --ink: #e8eaee; --quiet: #a3abb9; --line: #3a414d; }
}
body { margin: 0 auto; max-width: 1200px; padding: 24px; background: var(--ground); color: var(--ink);
font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 26px; overflow-wrap: anywhere; } h2 { font-size: 19px; margin-top: 36px; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--quiet); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px; }
svg { max-width: 100%; height: auto; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow-x: auto;
white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; padding: 4px 0; } .problem { color: #b45309; }
@media (prefers-color-scheme: dark) { .problem { color: #f5b950; } }
"""


def as_html(contents: Contents) -> str:
    """A run's report. All texts of the run are escaped."""
    pictures = [curve.svg for curve in contents.curves] + ([contents.data_svg] if contents.data_svg else [])
    return page(contents.title, "\n".join(_body(contents)), pictures)


def page(title: str, body: str, pictures: Iterable[str]) -> str:
    """The document around a body that shows these SVG pictures.

    `title` is text, which is escaped here; `body` is HTML. The page's policy allows its own styles and the pictures',
    by digest, and no more.
    """
    digests = dict.fromkeys(_digest(style) for style in (_STYLE, *_styles(pictures)))
    policy = f"default-src 'none'; style-src {' '.join(digests)}; base-uri 'none'; form-action 'none'"
    title = escape(title)
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>"
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>',
            f"{head}\n</head>\n<body>\n<h1>{title}</h1>",
            f"{body}\n</body>\n</html>\n",
        ]
    )


def _body(contents: Contents) -> Iterator[str]:
    for problem in contents.problems:
        yield f'<p class="problem">{escape(problem)}</p>'
    yield _pairs(contents.summary)
    if contents.curves:
        cards = "\n".join(f'<div class="card">{curve.svg}</div>' for curve in contents.curves)
        yield f'<h2>Curves</h2>\n<div class="curves">\n{cards}\n</div>'
    if contents.evaluation:
        yield f"<h2>Evaluation</h2>\n{table(EVALUATION_HEADER, contents.evaluation)}"
    if contents.rollouts:
        yield "<h2>Samples of rollouts</h2>"
        yield "<p>Of the first step and of the last one, from low rewards to high.</p>"
        yield from map(_rollout, contents.rollouts)
    if contents.data_text:
        yield f"<h2>Data</h2>\n<pre>{escape(contents.data_text)}</pre>"
        yield f'<div class="card">{contents.data_svg}</div>'
    for name, pairs in (
        ("Configuration", contents.recipe),
        ("Machine", contents.machine),
        ("Versions", contents.versions),
    ):
        if pairs:
            yield f"<h2>{name}</h2>\n{_pairs(pairs)}"


def _rollout(row: Rollout) -> str:
    error = f'<p class="problem">{escape(row.error)}</p>' if row.error else ""
    return (
        f"<details>\n<summary>{escape(rollout_facts(row))}</summary>\n{error}"
        f"<pre>{escape(row.prompt)}</pre>\n<pre>{escape(row.text)}</pre>\n</details>"
    )


def _pairs(pairs: Pairs) -> str:
    rows = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs)
    return f"<table>\n{rows}\n</table>"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table; the cells are text, and escaped here."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _styles(pictures: Iterable[str]) -> Iterator[str]:
    for picture in pictures:
        for style in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}style"):
            yield style.text or ""


def _digest(style: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
