"""The jinja2 environment that chat templates run in: what Hugging Face's offers, sandboxed and bounded.

A template comes with the checkpoint, so it is data from a stranger. Beyond jinja2's sandbox (no private attributes, no
changing of arguments) a render is bounded in time and in the text that it makes: every loop round, macro call,
filter, call, arithmetic operation and output is charged to a `Budget`. Not bounded: the memory of many small objects
that never become text, beyond what the budget's steps can make.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from string import Formatter
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEXT = 16 << 20  # characters of one value, and of the output
MAX_TEXT_TOTAL = 512 << 20  # characters of all values made on the way
MAX_STEPS = 1_000_000
MAX_SECONDS = 5.0
MAX_ITEMS = 100_000  # of a list made by arithmetic, and the width of padding, indenting and batching

_PADS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "round"})
_WRITES_OUT = frozenset({"join", "tojson", "string", "pprint", "format", "format_map", "urlencode", "xmlattr"})
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0_^]*(?:\*|\d{5}|\d*\.(?:\*|\d{5}))")
_WIDE_SPEC = re.compile(r"\d{5}|\{")


class TemplateLimitError(TemplateError):
    """A template that takes too long or makes too much text."""


class TemplateRaisedError(TemplateError):
    """What a template raises itself, by `raise_exception`: the conversation is not one that it accepts."""


class Budget:
    """What one render may still use."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS
        self._output = MAX_TEXT
        self._total = MAX_TEXT_TOTAL

    def step(self) -> None:
        """Charge one step, and look at the clock."""
        self._steps -= 1
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise TemplateLimitError(f"the template takes more than {MAX_STEPS} steps or {MAX_SECONDS:g} s")

    def text(self, size: int) -> None:
        """Charge one value of `size` characters before it is made, or once it is."""
        self._total -= size
        if size > MAX_TEXT or self._total < 0:
            raise TemplateLimitError(f"the template makes a text of more than {MAX_TEXT >> 20} Mi characters")

    def output(self, size: int) -> None:
        """Charge `size` characters of output."""
        self._output -= size
        if self._output < 0:
            raise TemplateLimitError(f"the template writes more than {MAX_TEXT >> 20} Mi characters")


budget: ContextVar[Budget] = ContextVar("budget")


class ChatTemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja2 as Hugging Face sets it up for chat templates, with every operation charged to the current `budget`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # else constant expressions would run, unbounded, while compiling
            extensions=[_GenerationTag, loopcontrols],
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _charged_filter(name, function) for name, function in self.filters.items()}
        plain = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals = {
            **plain,
            "dict": _make_dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Charge().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, its result's size checked before it is made."""
        current = budget.get()
        current.step()
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(times, int):
                    _check_length(sequence, len(sequence) * max(times, 0))
            _check_bits(_bits(left) + _bits(right))
        elif operator == "**":
            _check_bits(_bits(left) * abs(right) if isinstance(right, int) else 0)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_length(left, len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_wide(_WIDE_PERCENT, left)
            current.text(len(left) + _written_size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call from the template, its result's size bounded where a method of str could blow it up."""
        # Jinja2 hands out str.format wrapped, to check the attributes that its fields name.
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        name = getattr(method, "__name__", "")
        budget.get().step()
        if isinstance(owner, str):
            _check_text_method(name, owner, args, kwargs)
        return _charged(super().call(__context, __obj, *args, **kwargs))

    def charge_step(self) -> str:
        """Called at the start of every loop round and macro."""
        budget.get().step()
        return ""

    def charge_literal(self, size: int) -> str:
        """Called before literal text of `size` characters is written."""
        budget.get().output(size)
        return ""

    def charge_output(self, value: Any) -> Any:
        """Called on every value that is written."""
        if not isinstance(value, str):
            budget.get().text(_written_size(value))
            value = str(value)
        budget.get().output(len(value))
        return value

    def joined(self, *values: Any) -> str:
        """The `~` operator."""
        current = budget.get()
        current.step()
        current.text(sum(map(_written_size, values)))
        return "".join(map(str, values))


class _Charge(NodeTransformer):
    """Puts the charges into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_step(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        literal = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        children: list[nodes.Expr] = [
            child if isinstance(child, nodes.TemplateData) else _call("charge_output", [child], node.lineno)
            for child in node.nodes
        ]
        if literal:
            children.insert(0, _call("charge_literal", [nodes.Const(literal)], node.lineno))
        node.nodes = children
        return node

    def _with_step(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("charge_step", [], node.lineno), lineno=node.lineno))
        return node


def _call(method: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    attribute = nodes.EnvironmentAttribute(method, lineno=lineno)
    return nodes.Call(attribute, arguments, [], None, None, lineno=lineno)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is plain content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Namespace(Namespace):
    """Jinja2's namespace without private names, which could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> None:
    raise TemplateRaisedError(str(message))


def _strftime_now(format: str) -> str:
    _check_wide(_WIDE_PERCENT, format)
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    if (len(indent) if isinstance(indent, str) else indent or 0) > 64:
        raise TemplateLimitError("the template asks for a very wide JSON indent")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, charged to the budget. `wraps` keeps jinja2's mark of what a filter wants as first argument."""

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        current = budget.get()
        current.step()
        if name in _PADS:
            _check_widths((*args[1:], *kwargs.values()))
        if name == "replace":
            # (evaluation context, text, old, new, …)
            _check_text_method(name, str(args[1]), args[2:], kwargs)
        if name == "format":
            _check_wide(_WIDE_PERCENT, str(args[0]))
        if name in _WRITES_OUT:
            # The first argument may be jinja2's context, which has no size.
            current.text(sum(map(_written_size, (*args, *kwargs.values()))))
        return _charged(function(*args, **kwargs))

    return charged


def _charged(value: Any) -> Any:
    if isinstance(value, str):
        budget.get().text(len(value))
    return value


def _check_text_method(name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a method of str whose result would be too long, before it runs."""
    current = budget.get()
    if name in _PADS:
        _check_widths((*args, *kwargs.values()))
        if name == "expandtabs":
            current.text(len(text) * max([8, *(width for width in args if isinstance(width, int))]))
    elif name == "replace":
        old, new = [*map(str, args), *map(str, kwargs.values()), "", ""][:2]
        current.text(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "translate":
        current.text(len(text) * (1 + sum(map(_written_size, args))))
    elif name == "join":
        items = args[0] if args and isinstance(args[0], (str, list, tuple, dict)) else ()
        current.text(_written_size(args) + len(text) * len(items))
    elif name in ("format", "format_map"):
        for _, _, spec, _ in Formatter().parse(text):
            _check_wide(_WIDE_SPEC, spec or "")
        # Each field may name the longest argument again.
        current.text(len(text) + (1 + text.count("{")) * _written_size((args, kwargs)))


def _check_wide(pattern: re.Pattern[str], text: str) -> None:
    if pattern.search(text):
        raise TemplateLimitError("the template asks for a very wide format")


def _check_widths(arguments: tuple[Any, ...]) -> None:
    if any(isinstance(argument, int) and abs(argument) > MAX_ITEMS for argument in arguments):
        raise TemplateLimitError(f"the template asks for a width or count of more than {MAX_ITEMS}")


def _check_length(sequence: Any, length: int) -> None:
    if isinstance(sequence, (str, bytes)):
        budget.get().text(length)
    elif length > MAX_ITEMS:
        raise TemplateLimitError(f"the template makes a list of more than {MAX_ITEMS} items")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(bits: int) -> None:
    if bits > 1 << 16:
        raise TemplateLimitError("the template calculates with very large numbers")


def _written_size(value: Any) -> int:
    """At least the characters of `value` written out, counting shared parts as often as they stand in it."""
    size = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        size += 1
        if size > MAX_TEXT or len(stack) > MAX_TEXT:
            return MAX_TEXT + 1
    return size
