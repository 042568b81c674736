"""The verb `chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Any

from deepseek_r1.cli.opened import open_model
from deepseek_r1.cli.terminal import AnswerPrinter
from deepseek_r1.config.chat import ChatConfig
from deepseek_r1.core.errors import RequestError

HELP = """/help   this text
/clear  forget the conversation
/exit   leave (so do Ctrl-D, and Ctrl-C at the prompt; Ctrl-C during an answer stops the answer)"""


def chat(config: ChatConfig) -> int:
    """Talk with the model until the user leaves."""
    model, config = open_model(config)
    with model:
        converse(model, config)
    return 0


def converse(model: Any, config: ChatConfig) -> None:
    """Read lines, answer each, until the end of input, `/exit`, or an interrupt at the prompt."""
    _edit_lines()
    opening = [{"role": "system", "content": config.system}] if config.system is not None else []
    messages = list(opening)
    if sys.stdin.isatty():
        print(f"Chatting with {next(iter(config.adapters), config.model)}. /help shows the commands.")
    while (line := _read_line()) is not None:
        match line.split():
            case []:
                continue
            case ["/exit"]:
                return
            case ["/clear"]:
                messages = list(opening)
                print("The conversation is forgotten.")
            case ["/help"]:
                print(HELP)
            case [word, *_] if word.startswith("/"):
                print(f"There is no command {word}.\n{HELP}")
            case _:
                messages = _turn(model, config, [*messages, {"role": "user", "content": line}])


def _turn(model: Any, config: ChatConfig, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Print the answer to `messages` as it comes; the conversation with what was said, even when it was stopped."""
    printer = AnswerPrinter(sys.stdout)
    said: list[str] = []
    try:
        stream = model.chat(messages, stream=True, **config.sampling)
        try:
            for chunk in stream:
                printer.push(chunk.text, chunk.reasoning)
                said.append(chunk.text)
            printer.end()
        except KeyboardInterrupt:
            printer.end()
            print("(stopped)")
        finally:
            stream.close()
    except RequestError as error:
        print(f"error: {error.message}\n  mend: {error.remedy or '/clear forgets the conversation'}", file=sys.stderr)
        return messages[:-1]
    return [*messages, {"role": "assistant", "content": "".join(said)}]


def _read_line() -> str | None:
    """The next line, or None when the user leaves."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        if sys.stdin.isatty():
            print()
        return None


def _edit_lines() -> None:
    """Let the user edit the line being typed; nothing typed here is kept."""
    if not sys.stdin.isatty():
        return
    try:
        import readline
    except ImportError:  # Python was built without it: lines are then typed plainly
        return
    readline.set_auto_history(False)
