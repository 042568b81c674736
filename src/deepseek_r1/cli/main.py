"""Entry of the command line: parse, run the verb, and turn every error into one clear line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from deepseek_r1.cli.options import Parser, add_options, config_from
from deepseek_r1.cli.verbs import GROUPS, VERBS, Verb
from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.core.logging import configure_logging
from deepseek_r1.core.version import __version__

PROGRAM = "deepseek-r1"
TRACEBACK_VARIABLE = "DEEPSEEK_R1_TRACEBACK"
"""Environment variable that shows where in the code an unexpected error came from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `deepseek-r1` with `argv` (default: the process's own) and return its exit code."""
    return _guarded(build_parser(), argv)


def benchmark_main(argv: Sequence[str] | None = None) -> int:
    """Run `deepseek-benchmark`, which is `deepseek-r1 benchmark`; its first word may be `roofline`, that other verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = "roofline" if words[:1] == ["roofline"] else "benchmark"
    (verb,) = (verb for verb in VERBS if verb.words == (name,))
    program = "deepseek-benchmark" if name == "benchmark" else f"deepseek-benchmark {words.pop(0)}"
    parser = Parser(prog=program, description=verb.help)
    parser.add_argument("--version", action="version", version=f"deepseek-benchmark {__version__}")
    _fill(parser, verb)
    return _guarded(parser, words)


def build_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(prog=PROGRAM, description="Train, compress, serve and operate a reasoning model you own.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.set_defaults(parser=parser)
    top = parser.add_subparsers(metavar="VERB", title="verbs", parser_class=Parser)
    groups = {"": top}
    for verb in VERBS:
        group = " ".join(verb.words[:-1])
        if group not in groups:
            inner = top.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            inner.set_defaults(parser=inner)
            groups[group] = inner.add_subparsers(metavar="VERB", title="verbs", parser_class=Parser)
        _fill(groups[group].add_parser(verb.words[-1], help=verb.help, description=verb.help), verb)
    return parser


def _fill(parser: Parser, verb: Verb) -> None:
    add_options(parser, verb.config)
    parser.set_defaults(verb=verb, parser=parser)


def _guarded(parser: Parser, argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that can't show a character must not end the program
    try:
        code = _run(parser, argv)
        sys.stdout.flush()
        return code
    except DeepSeekError as error:
        return _fail(error.message, error.remedy, error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; without this the interpreter complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except MemoryError:
        return _fail("not enough memory", "close other programs, or take a smaller model or --precision int8", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", "deepseek-r1 doctor checks this machine", 1)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        remedy = f"this is a defect: run again with {TRACEBACK_VARIABLE}=1 and report what it shows"
        return _fail(f"{type(error).__name__}: {error}", remedy, 1)


def _run(parser: Parser, argv: Sequence[str] | None) -> int:
    try:
        given, unknown = parser.parse_known_args(argv)
    except SystemExit as stop:  # --help and --version have printed what was asked for
        return int(stop.code or 0)
    if unknown:
        given.parser.refuse(unknown)
    verb: Verb | None = getattr(given, "verb", None)
    if verb is None:
        given.parser.print_help()
        return 0
    config = config_from(verb.config, given)
    configure_logging(verb.log_level)
    module, _, function = verb.target.partition(":")
    code: int = getattr(importlib.import_module(module), function)(config)
    return code


def _fail(message: str, remedy: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if remedy:
        print(f"  mend: {remedy}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
