"""Command-line options out of configuration classes, and configurations out of command lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from deepseek_r1.config.base import Config, Option
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.core.registry import nearest

AnyConfig = TypeVar("AnyConfig", bound=Config)


class Parser(argparse.ArgumentParser):
    """A parser that raises `ConfigError` where argparse would print and exit, and suggests the nearest option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise ConfigError(message, remedy=f"{self.prog} --help shows what there is")

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Raise for words that no option or argument takes."""
        word = unknown[0].split("=", 1)[0]
        near = nearest(word, [flag for action in self._actions for flag in action.option_strings])
        self.error(f"unknown {'option' if word.startswith('-') else 'argument'} {word!r}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            self.error(f"there is no verb {value!r}{nearest(str(value), list(action.choices))}")


def add_options(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """Add every field of `config`, and `--config FILE`. Values stay text until `config_from` checks them."""
    for spec in config.options():
        help = describe(spec).replace("%", "%%")
        if spec.positional:
            nargs = "*" if spec.kind == "strings" else "?"
            parser.add_argument(spec.name, nargs=nargs, default=argparse.SUPPRESS, metavar=spec.metavar, help=help)
        elif spec.kind == "bool":
            parser.add_argument(
                *flags(spec),
                dest=spec.name,
                action=argparse.BooleanOptionalAction if spec.default else "store_true",
                default=argparse.SUPPRESS,
                help=help,
            )
        else:
            parser.add_argument(
                *flags(spec),
                dest=spec.name,
                action="append" if spec.kind == "strings" else "store",
                default=argparse.SUPPRESS,
                metavar=metavar(spec),
                help=help,
            )
    parser.add_argument(
        "--config", metavar="FILE", help="TOML or YAML file with these settings; options given here win over it"
    )


def config_from(config: type[AnyConfig], given: argparse.Namespace) -> AnyConfig:
    """The configuration that a parsed command line describes, over that of its `--config` file if it names one."""
    base = config.from_file(given.config) if given.config else config()
    values = {
        spec.name: _value(spec, getattr(given, spec.name)) for spec in config.options() if hasattr(given, spec.name)
    }
    return base.update(values)


def _value(spec: Option, given: Any) -> Any:
    return spec.parsed(given) if isinstance(given, str) else spec.checked(given)


def flags(spec: Option) -> Iterator[str]:
    """The option's names on the command line, short one first."""
    if spec.short:
        yield spec.short
    yield "--" + spec.name.replace("_", "-")


def metavar(spec: Option) -> str:
    """The word that stands for the option's value."""
    if spec.metavar:
        return spec.metavar
    if spec.choices:
        return "|".join(map(str, spec.choices))
    return {"size": "SIZE", "str": "TEXT", "strings": "NAME", "ints": "N,N,..."}.get(spec.kind, "N")


def describe(spec: Option) -> str:
    """The option's words, with the default and the variable of the environment that gives it."""
    words = spec.help
    if spec.env:
        words += f"; default: ${spec.env}"
    elif spec.kind != "bool" and spec.default not in (None, ()):
        default = spec.default
        if spec.kind == "size":
            default = f"{default >> 20}MiB"
        words += f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
    return words
