"""The documentation is true: its Python and curl examples run, its links lead somewhere, its tables are complete."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.operate.metrics import ServerMetrics

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SERVE = ROOT / "docs/serve.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ADDRESS = "http://127.0.0.1:8080"

VOLATILE = {"id", "created"}
"""Fields whose values differ from run to run; of a model, `id` is its name and does not."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, content) of a page's fenced code blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def curl_examples(page: Path) -> list[tuple[str, str]]:
    """(command, the JSON shown after it, "" where there is none) of every curl command of a page."""
    found = blocks(page)
    following = [*found[1:], ("", "")]
    return [
        (content, after if kind == "json" else "")
        for (language, content), (kind, after) in zip(found, following, strict=True)
        if language == "sh" and content.startswith("curl ")
    ]


CURLS = [
    pytest.param(command, shown, id=f"{page.stem}-{number}")
    for page in (README, SERVE)
    for number, (command, shown) in enumerate(curl_examples(page))
]


def test_the_first_screen_holds_what_a_newcomer_needs() -> None:
    top = "\n".join(README.read_text(encoding="utf-8").splitlines()[:40])
    assert re.findall(r"^make (\w+)", top, re.MULTILINE) == ["serve", "test"]
    assert top.count("\n>>> ") == 6
    assert top.count("\ncurl ") == 1
    assert "(docs/architecture.md)" in top


def test_the_commands_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([a-z0-9-]+)", text))
    assert {"serve", "test"} <= named <= targets
    variables = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert variables == set(re.findall(r"^([A-Z0-9_]+) \?=", makefile, re.MULTILINE))


def test_the_python_session_runs(tmp_path: Path) -> None:
    """All sessions of the README, one after the other in one interpreter, as doctest reads them."""
    sessions = [content for language, content in blocks(README) if language == "python" and ">>> " in content]
    assert len(sessions) >= 3
    script = tmp_path / "session.txt"
    script.write_text("\n".join(sessions), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "doctest", str(script)], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_python_without_output_is_python() -> None:
    for page in PAGES:
        for language, content in blocks(page):
            if language == "python" and ">>> " not in content:
                compile(content, str(page), "exec")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the real server with the default model, as `make serve` starts it."""
    folder = tmp_path_factory.mktemp("readme")
    environment = {**os.environ, "XDG_STATE_HOME": str(folder)}
    environment.pop("DEEPSEEK_R1_API_KEY", None)
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepseek_r1.cli.main", "serve", "default", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if match := re.match(r"Chat page: (http://\S+)/$", line):
                yield match[1]
                break
        else:
            raise AssertionError(f"the server ended: {lines} {(folder / 'errors').read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def without_chance(value: Any) -> Any:
    """An answer without what differs from run to run: ids of answers, times, what the cache had already, the path."""
    if isinstance(value, list):
        return [without_chance(item) for item in value]
    if not isinstance(value, dict):
        return value
    volatile = {"created"} if value.get("object") == "model" else VOLATILE
    kept = {key: without_chance(item) for key, item in value.items() if key not in volatile}
    if "cached_tokens" in kept:
        kept["cached_tokens"] = 0
    if "system_fingerprint" in kept:
        kept["system_fingerprint"] = kept["system_fingerprint"].partition("/")[0]
    return kept


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (Debian: apt-get install curl)")
@pytest.mark.parametrize(("command", "shown"), CURLS)
def test_the_curl_commands_answer_as_shown(command: str, shown: str, server: str) -> None:
    assert ADDRESS in command
    words = shlex.split(command.replace(ADDRESS, server).replace("\\\n", " "))
    done = subprocess.run([*words, "--max-time", "120"], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    if not shown:
        assert "error" not in answer
        return
    expected = json.loads(shown)
    assert without_chance(answer) == without_chance(expected)
    assert list(answer) == list(expected), "in the order that is shown"


def test_the_comparison_of_answers_can_fail() -> None:
    shown = json.loads(curl_examples(README)[0][1])
    other = json.loads(json.dumps(shown))
    other["id"], other["created"] = "chatcmpl-other", 1
    assert without_chance(other) == without_chance(shown)
    other["choices"][0]["message"]["content"] = "Lyon."
    assert without_chance(other) != without_chance(shown)


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def test_paths_named_in_the_documentation_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"`((?:src|tests|docs|benchmarks|deploy)/[\w./]+)`", text)) - {"docs/proof/"}
        assert [path for path in named if not (ROOT / path).exists()] == [], page


def test_every_floor_has_its_page() -> None:
    house = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for package in (ROOT / "src/deepseek_r1").glob("*/__init__.py"):
        assert re.search(rf"^\| \[{package.parent.name}\]\(", house, re.MULTILINE), package.parent.name


def table_column(page: Path, heading: str, column: int) -> set[str]:
    """The code words in one column of the table rows below a heading."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = section.split("|---", 1)[1].splitlines()[1:]
    cells = [re.split(r"(?<!\\)\|", row)[column + 1] for row in rows if row.startswith("|")]
    return {match[1] for cell in cells if (match := re.match(r" `(\w+)", cell))}


def test_the_table_of_metrics_is_complete() -> None:
    series = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in ServerMetrics("m").registry.collect()
    }
    assert table_column(ROOT / "docs/operate.md", "Metrics", 0) == series


def texts(node: ast.expr) -> set[str]:
    """The strings that an expression can have as its value, as far as it says so itself."""
    match node:
        case ast.Constant(value=str(value)):
            return {value}
        case ast.IfExp(body=body, orelse=other):
            return texts(body) | texts(other)
        case ast.BoolOp(values=values) | ast.Call(args=values):
            return set().union(*map(texts, values))
        case ast.Dict(values=values):
            return set().union(*map(texts, values))
        case _:
            return set()


def codes(tree: ast.Module) -> set[str]:
    """The error codes that a module names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="code", value=value) | ast.Assign(targets=[ast.Name("code" | "_CODES")], value=value):
                found |= texts(value)
            case ast.Call(func=ast.Name("Refused"), args=[_, _, value, *_]):
                found |= texts(value)
    return found


def test_the_table_of_error_codes_is_complete() -> None:
    modules = (ROOT / "src/deepseek_r1").rglob("*.py")
    raised = set().union(*[codes(ast.parse(path.read_text(encoding="utf-8"))) for path in modules])
    assert len(raised) > 20
    assert table_column(SERVE, "Errors", 1) == raised
