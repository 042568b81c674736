"""Traces of what is written as one formula: arithmetic with parentheses, and linear equations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek_r1.data.tasks.columns import Lines, add, divide, multiply, subtract
from deepseek_r1.data.tasks.item import Derivation, Item

_TOKEN = re.compile(r"\d+|[-+*()]")
_TERM = re.compile(r"([+-]?)(\d*)\*?([a-z]?)")


@dataclass(frozen=True)
class _Node:
    """A number (`operator` is empty), a group (`(`), a negated group (`~`), or two parts joined by `+`, `-` or `*`.

    A group holds an operation: one around a number is read as the number.
    """

    operator: str
    value: int = 0
    parts: tuple[_Node, ...] = ()

    def __str__(self) -> str:
        match self.operator:
            case "":
                return str(self.value)
            case "(":
                return f"({self.parts[0]})"
            case "~":
                return f"-{self.parts[0]}" if self.parts[0].operator else f"-({self.parts[0]})"
            case operator:
                return operator.join(map(str, self.parts))


def basic_arithmetic(item: Item) -> Derivation:
    """One operation at a time, from the left, groups first; before each, what is left of the formula."""
    node = _parse(str(item.metadata["expression"]))
    lines: Lines = []
    while node.operator:
        if any(part.operator for part in node.parts):  # else it is the left side of the next step
            lines.append(str(node))
        node, steps = _reduced(node)
        lines += steps
    return Derivation("\n".join(lines or [f"{node}={node}"]), str(node))


def simple_equations(item: Item) -> Derivation:
    """The constant goes to the right side, the coefficient is divided away."""
    variable = str(item.metadata["variable"])
    left, right = str(item.metadata["equation"]).replace(" ", "").split("=")
    coefficient, constant = _linear(left)
    value = int(right)
    name = variable if abs(coefficient) == 1 else f"{abs(coefficient)}*{variable}"
    lines: Lines = []
    if coefficient < 0:
        lines += [f"{name}={constant}-{value}", *subtract(constant, value)]
        value = constant - value
    elif constant > 0:
        lines += [f"{name}={value}-{constant}", *subtract(value, constant)]
        value -= constant
    elif constant < 0:
        lines += [f"{name}={value}+{-constant}", *add(value, -constant)]
        value += -constant
    if abs(coefficient) > 1:
        lines.append(f"{variable}={value}/{abs(coefficient)}")
        steps, value, _ = divide(value, abs(coefficient))
        lines += steps
    return Derivation("\n".join([*lines, f"{variable}={value}"]), str(value))


def _linear(side: str) -> tuple[int, int]:
    """The coefficient of the variable and the constant of a sum such as `20-3*x`."""
    coefficient = constant = 0
    for sign, number, variable in _TERM.findall(side):
        if not number and not variable:
            continue
        value = int(number or 1) * (-1 if sign == "-" else 1)
        if variable:
            coefficient += value
        else:
            constant += value
    return coefficient, constant


def _reduced(node: _Node) -> tuple[_Node, Lines]:
    """`node` with its first operation done, and the lines of that operation."""
    for place, part in enumerate(node.parts):
        if part.operator:
            new, lines = _reduced(part)
            if node.operator == "(" and not new.operator:
                return new, lines
            return _Node(node.operator, parts=(*node.parts[:place], new, *node.parts[place + 1 :])), lines
    values = [part.value for part in node.parts]
    match node.operator:
        case "+":
            return _Node("", sum(values)), add(*values)
        case "-":
            return _Node("", values[0] - values[1]), subtract(*values)
        case "*":
            return _Node("", values[0] * values[1]), multiply(*values)
        case _:
            return _Node("", -values[0]), [f"-({values[0]})={-values[0]}"]


def _parse(text: str) -> _Node:
    tokens = _TOKEN.findall(text)
    node, rest = _sum(tokens)
    if rest:
        raise ValueError(f"{text!r} goes on after its end: {rest[0]}")
    return node


def _sum(tokens: list[str]) -> tuple[_Node, list[str]]:
    node, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        right, rest = _product(tokens[1:])
        node, tokens = _Node(tokens[0], parts=(node, right)), rest
    return node, tokens


def _product(tokens: list[str]) -> tuple[_Node, list[str]]:
    node, tokens = _factor(tokens)
    while tokens and tokens[0] == "*":
        right, rest = _factor(tokens[1:])
        node, tokens = _Node("*", parts=(node, right)), rest
    return node, tokens


def _factor(tokens: list[str]) -> tuple[_Node, list[str]]:
    if tokens and tokens[0] == "-":
        inner, rest = _factor(tokens[1:])
        return (_Node("", -inner.value) if not inner.operator else _Node("~", parts=(inner,))), rest
    if tokens and tokens[0] == "(":
        inner, rest = _sum(tokens[1:])
        if not rest or rest[0] != ")":
            raise ValueError("a parenthesis is not closed")
        # A group around one number is that number.
        return (inner if not inner.operator else _Node("(", parts=(inner,))), rest[1:]
    if tokens and tokens[0].isdigit():
        return _Node("", int(tokens[0])), tokens[1:]
    raise ValueError(f"a number is missing before {tokens[:1]}")
