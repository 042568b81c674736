from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from deepseek_r1.cli.chat import converse
from deepseek_r1.cli.terminal import AnswerPrinter, Progress, table, visible
from deepseek_r1.config.chat import ChatConfig
from deepseek_r1.core.errors import RequestError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Model:
    """Stands in for `DeepSeekModel`: answers with a thought and an echo of what it was asked."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.settings: dict[str, Any] = {}
        self.interrupt_after = interrupt_after
        self.open_streams = 0

    def chat(self, messages: list[dict[str, str]], **settings: Any) -> Iterator[Any]:
        self.asked.append([dict(message) for message in messages])
        self.settings = settings
        if messages[-1]["content"] == "too long":
            raise RequestError("the prompt is too long", remedy="shorten it")
        return self._stream(f"you said {messages[-1]['content']}")

    def _stream(self, text: str) -> Iterator[Any]:
        self.open_streams += 1
        try:
            yield types.SimpleNamespace(text="", reasoning="let me think", token_ids=[1], finish_reason=None)
            for index, word in enumerate(text.split(" ")):
                if index == self.interrupt_after:
                    raise KeyboardInterrupt
                piece = word if index == 0 else f" {word}"
                yield types.SimpleNamespace(text=piece, reasoning="", token_ids=[2], finish_reason=None)
        finally:
            self.open_streams -= 1


def talk(monkeypatch: pytest.MonkeyPatch, model: Model, typed: str, **settings: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    converse(model, ChatConfig(**settings))


# --- interrupts -------------------------------------------------------------------------------------------------------


SLOW_MODEL = """
import sys, time, types
class Model:
    @classmethod
    def from_pretrained(cls, *args, **settings): return cls()
    def __enter__(self): return self
    def __exit__(self, *args): print("closed", file=sys.stderr, flush=True)
    def chat(self, messages, **settings): return self.generate("")
    def generate(self, prompt, **settings):
        while True:
            yield types.SimpleNamespace(text="word " * 50, reasoning="", token_ids=[1], finish_reason=None)
            time.sleep(0.005)
module = types.ModuleType("deepseek_r1.serve.local")
module.DeepSeekModel = Model
sys.modules["deepseek_r1.serve.local"] = module
from deepseek_r1.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_interrupt_ends_generate_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_MODEL, "generate", "--prompt", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"word"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"closed\n")


def test_a_reader_that_leaves_ends_generate_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_MODEL, "generate", "--prompt", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(4) == b"word"
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b"closed\n"
    process.stderr.close()


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_keeps_the_conversation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    talk(monkeypatch, model, "hello\n\nagain\n", system="be brief", seed=3)
    system = {"role": "system", "content": "be brief"}
    first = {"role": "user", "content": "hello"}
    assert model.asked == [
        [system, first],
        [system, first, {"role": "assistant", "content": "you said hello"}, {"role": "user", "content": "again"}],
    ]
    assert model.settings["seed"] == 3 and model.settings["stream"] is True
    assert capsys.readouterr().out == "let me think\n\nyou said hello\nlet me think\n\nyou said again\n"


def test_chat_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    talk(monkeypatch, model, "one\n/clear\ntwo\n/help\n/undo\n/exit\nthree\n")
    assert [[message["content"] for message in asked] for asked in model.asked] == [["one"], ["two"]]
    out = capsys.readouterr().out
    assert "The conversation is forgotten." in out
    assert "There is no command /undo." in out
    assert out.count("/exit   leave") == 2


def test_an_interrupt_stops_the_answer_and_keeps_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(interrupt_after=2)
    talk(monkeypatch, model, "hello\nmore\n")
    assert model.asked[1][1] == {"role": "assistant", "content": "you said"}
    assert capsys.readouterr().out.count("(stopped)") == 2
    assert model.open_streams == 0


def test_a_refused_turn_is_forgotten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    talk(monkeypatch, model, "too long\nshort\n")
    assert [message["content"] for message in model.asked[1]] == ["short"]
    assert capsys.readouterr().err == "error: the prompt is too long\n  mend: shorten it\n"


def test_chat_in_a_real_terminal() -> None:
    """Ctrl-C stops the answer, the prompt comes back, Ctrl-D leaves."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SLOW_MODEL, "chat"])
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while words not in seen:
            assert time.monotonic() < end, seen[-500:]
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
        seen = seen[seen.index(words) + len(words) :]

    try:
        until(b"/help shows the commands.")
        until(b"> ")
        os.write(terminal, b"hello\n")
        until(b"word word")
        os.write(terminal, b"\x03")
        until(b"(stopped)")
        until(b"> ")
        os.write(terminal, b"\x04")
        until(b"closed")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)


# --- printing ---------------------------------------------------------------------------------------------------------


def test_thinking_is_dimmed_on_terminals_only() -> None:
    for stream, expected in (
        (Terminal(), "\x1b[2mhm, well\x1b[0m\n\nyes\n"),
        (io.StringIO(), "hm, well\n\nyes\n"),
    ):
        printer = AnswerPrinter(stream)
        for text, reasoning in (("", "hm, "), ("", "well"), ("y", ""), ("es", "")):
            printer.push(text, reasoning)
        printer.end()
        assert stream.getvalue() == expected


def test_one_blank_line_stands_between_thinking_and_answer() -> None:
    for thoughts in (["hm"], ["hm\n"], ["h", "m\n"]):
        stream = io.StringIO()
        printer = AnswerPrinter(stream)
        for thought in thoughts:
            printer.push("", thought)
        printer.push("yes")
        printer.end()
        assert stream.getvalue() == "hm\n\nyes\n"


def test_an_answer_that_ends_while_thinking_ends_the_dimming() -> None:
    stream = Terminal()
    printer = AnswerPrinter(stream)
    printer.push("", "hm")
    printer.end()
    assert stream.getvalue() == "\x1b[2mhm\x1b[0m\n"


def test_a_model_cannot_command_the_terminal() -> None:
    stream = Terminal()
    AnswerPrinter(stream).push("a\x1b]0;title\x07b\r\n\tc\x9b2J")
    assert stream.getvalue() == "a␛]0;title␇b␍\n\tc\ufffd2J"
    assert visible("naïve 三 🙂\n") == "naïve 三 🙂\n"


def test_progress() -> None:
    lines, terminal = io.StringIO(), Terminal()
    for stream in (lines, terminal):
        progress = Progress(stream)
        progress("load", done=1, total=2)
        progress.end()
    assert json.loads(lines.getvalue()) == {"event": "load", "done": 1, "total": 2}
    assert terminal.getvalue() == "\r\x1b[Kload: done 1 total 2\r\x1b[K"


def test_table() -> None:
    assert table(("name", "n"), [("a", "1"), ("long one", "22")]) == (
        "name       n\n--------  --\na          1\nlong one  22"
    )
