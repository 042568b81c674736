from __future__ import annotations

import http.client
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.operate.runs.page import RunServer
from deepseek_r1.operate.runs.read import RunError
from deepseek_r1.operate.runs.write import RunWriter
from support.run_folder import metrics, rollouts, write_run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunServer]:
    write_run(tmp_path / "run", 5)
    with RunServer(tmp_path / "run") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: RunServer, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def value(server: RunServer, path: str) -> Any:
    status, _, body = get(server, path)
    assert status == 200
    return json.loads(body)


def test_metrics_from_an_offset(server: RunServer) -> None:
    status, headers, body = get(server, "/metrics.jsonl")
    assert status == 200 and headers["Run-From"] == "0"
    assert [json.loads(line) for line in body.splitlines()] == [metrics(step) for step in range(1, 6)]
    after = headers["Run-Next"]
    assert get(server, f"/metrics.jsonl?from={after}")[2] == b""
    with RunWriter(server.folder) as writer:
        writer.step(metrics(6))
        _, headers, body = get(server, f"/metrics.jsonl?from={after}")
        assert headers["Run-From"] == after and json.loads(body) == metrics(6)
        writer.rewind(2)
    assert get(server, f"/metrics.jsonl?from={after}")[1]["Run-From"] == "0"


def test_rollouts_and_the_rest(server: RunServer) -> None:
    found = value(server, "/rollouts.json?family=sums&step=2&limit=1")
    assert (found["matching"], found["more"], found["families"]) == (2, True, ["countdown", "sums"])
    (row,) = found["rows"]
    assert row["tokens"] == rollouts(2)[3]["tokens"] and row["reward"] is None and "\x1b" not in row["text"]
    (row,) = value(server, f"/rollouts.json?family=sums&step=2&before={row['id']}")["rows"]
    assert row["text"].startswith("answer 1 of step 2")
    run = value(server, "/run.json")
    assert (run["name"], run["status"], run["steps"], run["problems"]) == ("run", "running", 5, [])
    assert run["age"] < 60 and run["evaluation"]["rows"][0][5] == "62.5 %"
    assert ["recipe.a.b", "[1, 2]"] in run["run"]


@pytest.mark.parametrize(
    "query", ["metrics.jsonl?from=-1", "metrics.jsonl?from=1e3", "rollouts.json?sign=odd", "rollouts.json?step=²"]
)
def test_wrong_questions(server: RunServer, query: str) -> None:
    status, _, body = get(server, "/" + query.replace("²", "%C2%B2"))
    assert status == 400 and "must be" in json.loads(body)["error"]


def test_nothing_but_the_page_and_the_run_is_served(server: RunServer) -> None:
    page = get(server, "/")[2].decode()
    assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page
    for path in ("/static/../page.py", "/static/%2e%2e/page.py", "/static/", "/run.jsonl", "//etc/passwd", "/static/x"):
        assert get(server, path)[0] == 404
    status, headers, _ = get(server, "/static/app.js")
    assert status == 200 and headers["Content-Type"] == "text/javascript; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.server_address[0] == "127.0.0.1"


def test_other_names_of_this_machine_are_refused(server: RunServer) -> None:
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", ""):
        assert get(server, "/run.json", Host=host)[0] == 403
    assert get(server, "/run.json", Host="LOCALHOST:1")[0] == 200


def test_a_run_that_goes_away(server: RunServer) -> None:
    for path in server.folder.iterdir():
        path.unlink()
    assert get(server, "/run.json")[0] == 500
    assert value(server, "/rollouts.json")["rows"] == []
    assert get(server, "/metrics.jsonl?from=10")[1]["Run-From"] == "0"


def test_a_server_that_cannot_start(server: RunServer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunServer(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=f"port {server.server_port} is in use"):
        RunServer(server.folder, server.server_port)


# --- the verbs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_run(tmp_path, 3)
    return str(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rollouts_in_the_terminal(folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    argv = ["rollouts", "view", folder, "--family", "countdown", "--step", "3"]
    assert main([*argv, "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 3, countdown level 2, reward 1 (correct 1, ") and "\x1b" not in out
    assert "prompt of step 3\n---\nanswer 2 of step 3" in out
    assert out.endswith("\n2 rollouts match, 1 shown\n")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(argv) == 0
    assert "\x1b[1m\x1b[32mstep 3, " in terminal.getvalue() and "\x1b[1m\x1b[31mstep 3, " in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


def test_no_rollout(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollouts", "view", folder, "--family", "none"]) == 0
    assert capsys.readouterr().out == "No rollout matches.\n"


def test_the_report_verb(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "report", folder]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder}/report.html", f"{folder}/report.md"]


@pytest.mark.parametrize(("argv", "tab"), [(["runs", "view"], ""), (["rollouts", "view", "--page"], "#rollouts")])
def test_the_page_verbs(
    folder: str, argv: list[str], tab: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(server: RunServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunServer, "serve_forever", interrupted)
    assert main([*argv, folder]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("The run's page: http://127.0.0.1:") and first.endswith(f"/{tab}") and last == "Stopped."


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["runs", "view"], 2, "error: no folder was named"),
        (["runs", "report", "nowhere"], 1, "error: nowhere: holds no run"),
        (["rollouts", "view", "nowhere"], 1, "error: nowhere: holds no run"),
        (["rollouts", "view", "x", "--page", "--step", "1"], 2, "error: the page has filters of its own"),
        (["rollouts", "view", "x", "--limit", "0"], 2, "error: limit must be"),
    ],
)
def test_wrong_words(argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    output = capsys.readouterr()
    assert output.err.startswith(words) and "mend:" in output.err + "mend:" and output.out == ""
