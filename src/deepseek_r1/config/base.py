"""The machinery under every configuration class: typed, validated, frozen, and loadable from mappings and files.

A class that derives from `Config` becomes a frozen dataclass; each field is made by `option`, whose words are also
the words of the command line and of the documentation.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.core.registry import nearest

MAX_FILE_BYTES = 1 << 20
"""A configuration file larger than this is refused unread."""

Kind = Literal["bool", "int", "float", "str", "size", "ints", "strings"]

_NOUN: dict[Kind, str] = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "size": "a size in bytes such as 4GiB or 800MB",
    "ints": "a list of integers",
    "strings": "a list of texts",
}
_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def parse_size(text: str | int) -> int:
    """Bytes named by `text`: "4GiB" and "4g" are 4 * 2**30, "4GB" is 4 * 10**9, "4096" is bytes.

    Raises `ConfigError` for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-zA-Z]*)\s*", text) if isinstance(text, str) else None
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f"{_SHORT.repr(text)} is not a size", remedy="write it like 4GiB, 800MB or 2g")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def option(
    *,
    default: Any,
    help: str,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
    short: str | None = None,
    positional: bool = False,
    size: bool = False,
    secret: bool = False,
    env: str | None = None,
) -> Any:
    """A documented, validated field of a `Config` class.

    `choices`, `minimum` and `maximum` (both inclusive; of each entry where the field is a list) bound the value.
    `size` lets an int field take "4GiB". `secret` keeps the value out of `repr` and `to_dict`. `env` names an
    environment variable that gives the default. `metavar`, `short` ("-p") and `positional` shape the command line.
    """
    words = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "metavar": metavar,
        "short": short,
        "positional": positional,
        "size": size,
        "secret": secret,
        "env": env,
        "default": default,
    }
    factory: Callable[[], Any] = lambda: (os.environ.get(env) if env else None) or default  # noqa: E731
    if env:
        return dataclasses.field(default_factory=factory, repr=not secret, metadata=words)
    return dataclasses.field(default=default, repr=not secret, metadata=words)


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of one field of a `Config` class: its kind, its bounds and its words."""

    name: str
    kind: Kind
    nullable: bool
    default: Any
    help: str
    choices: tuple[Any, ...] | None
    minimum: float | None
    maximum: float | None
    metavar: str | None
    short: str | None
    positional: bool
    secret: bool
    env: str | None

    @property
    def allowed(self) -> str:
        """The values this field takes, in words."""
        if self.choices is not None:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            words = _NOUN[self.kind]
        if self.minimum is not None and self.maximum is not None:
            words += f" from {self.minimum} to {self.maximum}"
        elif self.minimum is not None:
            words += f" of at least {self.minimum}"
        elif self.maximum is not None:
            words += f" of at most {self.maximum}"
        return words + (" (or none)" if self.nullable else "")

    def checked(self, value: Any) -> Any:
        """`value` in its stored form: lists as tuples, ints as floats where a float is asked, sizes in bytes.

        Raises `ConfigError` for a wrong type or a value outside the bounds.
        """
        if value is None and self.nullable:
            return None
        stored = _stored(self.kind, value)
        if stored is None or not all(self._within(entry) for entry in _entries(stored)):
            raise ConfigError(
                f"{self.name} must be {self.allowed}, not {'the given text' if self.secret else _SHORT.repr(value)}"
            )
        return stored

    def parsed(self, text: str) -> Any:
        """The checked value of a command-line word. Lists are separated by commas. Raises `ConfigError`."""
        value: Any = text
        try:
            if self.kind == "int":
                value = int(text)
            elif self.kind == "float":
                value = float(text)
            elif self.kind == "ints":
                value = tuple(int(part) for part in text.split(",") if part.strip())
            elif self.kind == "strings":
                value = tuple(part.strip() for part in text.split(",") if part.strip())
        except ValueError:
            value = text  # the check below says what was expected
        return self.checked(value)

    def _within(self, entry: Any) -> bool:
        if self.choices is not None and entry not in self.choices:
            return False
        if self.minimum is not None and entry < self.minimum:
            return False
        return not (self.maximum is not None and entry > self.maximum)


def _entries(stored: Any) -> tuple[Any, ...]:
    return stored if isinstance(stored, tuple) else (stored,)


def _stored(kind: Kind, value: Any) -> Any:
    """`value` as fields of this kind are stored, or None where it has another type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "bool":
            return value if isinstance(value, bool) else None
        case "int":
            return value if number and isinstance(value, int) else None
        case "float":
            return float(value) if number and math.isfinite(value) else None
        case "str":
            return value if isinstance(value, str) else None
        case "size":
            try:
                return parse_size(value)
            except ConfigError:
                return None
        case "ints" | "strings":
            inner: Kind = "int" if kind == "ints" else "str"
            if not isinstance(value, list | tuple) or any(_stored(inner, entry) is None for entry in value):
                return None
            return tuple(value)


_KINDS: dict[Any, Kind] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    tuple[int, ...]: "ints",
    tuple[str, ...]: "strings",
}


def _option_of(field: dataclasses.Field[Any], hint: Any) -> Option:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    nullable = type(None) in parts
    (plain,) = (part for part in parts if part is not type(None))
    words = dict(field.metadata)
    size = words.pop("size")
    if typing.get_origin(plain) is Literal:
        words["choices"] = typing.get_args(plain)
        plain = type(words["choices"][0])
    return Option(name=field.name, kind="size" if size else _KINDS[plain], nullable=nullable, **words)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(option,))
class Config:
    """Base of all configurations. A subclass is made a frozen dataclass by deriving; its fields come from `option`.

    Building one checks every value: `ConfigError` names the field, the value and what is allowed.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self) -> None:
        for spec in self.options():
            object.__setattr__(self, spec.name, spec.checked(getattr(self, spec.name)))
        self.check()

    def check(self) -> None:
        """Checks that span fields or need more than bounds; overridden where there are some."""

    @classmethod
    @cache
    def options(cls) -> tuple[Option, ...]:
        """The fields of this class, in order, with their bounds and words."""
        hints = typing.get_type_hints(cls)
        return tuple(_option_of(field, hints[field.name]) for field in dataclasses.fields(typing.cast(Any, cls)))

    def update(self, mapping: Mapping[str, Any] | None = None, **changes: Any) -> Self:
        """A validated copy with some values replaced; the object itself never changes. Raises `ConfigError`."""
        changes = {**(mapping or {}), **changes}
        self._refuse_unknown(changes)
        copy: Self = dataclasses.replace(typing.cast(Any, self), **changes)
        return copy

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """A configuration with the defaults for whatever `mapping` leaves out. Raises `ConfigError`."""
        cls._refuse_unknown(mapping)
        return cls(**mapping)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """A configuration from a TOML or YAML file (told by its suffix). Raises `ConfigError`, naming file and key."""
        mapping = read_file(path)
        try:
            return cls.from_mapping(mapping)
        except (ConfigError, UnsupportedError) as error:
            raise type(error)(f"{path}: {error.message}", remedy=error.remedy) from None

    def to_dict(self, *, secrets: bool = False) -> dict[str, Any]:
        """The values by field name, tuples as lists; secret fields only when asked for."""
        values = {spec.name: getattr(self, spec.name) for spec in self.options() if secrets or not spec.secret}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def _refuse_unknown(cls, mapping: Mapping[str, Any]) -> None:
        known = [spec.name for spec in cls.options()]
        for key in mapping:
            if key not in known:
                raise ConfigError(
                    f"{cls.__name__} has no setting {_SHORT.repr(key)}{nearest(str(key), known)}",
                    remedy=f"settings: {', '.join(known)}",
                )


def read_file(path: str | Path) -> dict[str, Any]:
    """The top-level mapping of a TOML or YAML file of at most `MAX_FILE_BYTES`. Raises `ConfigError`."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"{path}: not a configuration file", remedy="name it .toml, .yaml or .yml")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}",
            remedy="give the path of a readable TOML or YAML file",
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{path}: larger than {MAX_FILE_BYTES} bytes", remedy="a configuration file holds settings only"
        )
    try:
        loaded = _load_toml(text) if suffix == ".toml" else _load_yaml(text)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{path}: {problem}", remedy="mend the file's syntax") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: must hold a table of settings, not {_SHORT.repr(loaded)}")
    return loaded


def _load_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # The parser's own words quote the text around the fault, which may hold a key.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not YAML"
        raise ValueError(f"{problem} (line {mark.line + 1})" if mark else problem) from None
    return {} if loaded is None else loaded
