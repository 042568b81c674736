"""Traces of number tasks: sums, products, divisors, factors, legs and sorted lists."""

from __future__ import annotations

import importlib

from deepseek_r1.data.tasks.columns import Lines, add, divide, multiply, subtract
from deepseek_r1.data.tasks.item import Derivation, Item

_PRIMES = (2, 3, 5, 7)
"""Enough to factor numbers below 121."""


def chain_sum(item: Item) -> Derivation:
    """From the left, one term after another."""
    first, *rest = str(item.metadata["expression"]).split(" ")
    total, lines = int(first), Lines()
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        lines += add(total, int(term)) if operator == "+" else subtract(total, int(term))
        total += int(term) if operator == "+" else -int(term)
    return _stated(lines, total)


def products(item: Item) -> Derivation:
    """From the left, one factor after another."""
    first, *rest = (int(factor) for factor in str(item.metadata["expression"]).split(" * "))
    total, lines = first, Lines()
    for factor in rest:
        lines += multiply(total, factor)
        total *= factor
    return _stated(lines, total)


def gcd(item: Item) -> Derivation:
    """Euclid's algorithm on two numbers."""
    left, right = item.metadata["numbers"]
    lines, divisor = _common_divisor(int(left), int(right))
    return Derivation("\n".join([*lines, f"gcd({left},{right})={divisor}"]), str(divisor))


def fraction_simplification(item: Item) -> Derivation:
    """The greatest common divisor by Euclid's algorithm, then both parts divided by it."""
    above, below = int(item.metadata["numerator"]), int(item.metadata["denominator"])
    lines, divisor = _common_divisor(above, below)
    lines.append(f"gcd({above},{below})={divisor}")
    answer = f"{above // divisor}/{below // divisor}"
    if divisor > 1:
        lines += [*divide(above, divisor)[0], *divide(below, divisor)[0]]
    return Derivation("\n".join([*lines, f"{above}/{below}={answer}"]), answer)


def prime_factorization(item: Item) -> Derivation:
    """Division by 2, 3, 5, 7, … while the square of the divisor is not above what is left."""
    rest = number = int(item.metadata["number"])
    factors: list[int] = []
    lines: Lines = []
    for divisor in _PRIMES:
        while divisor * divisor <= rest:
            steps, quotient, remainder = divide(rest, divisor)
            lines += steps
            if remainder:
                if len(steps) > 1:  # else this has just been said
                    lines.append(f"{rest}={divisor}*{quotient}+{remainder}")
                break
            factors.append(divisor)
            rest = quotient
    factors.append(rest)
    lines.append(f"{number}={'*'.join(map(str, factors))}")
    return Derivation("\n".join(lines), " × ".join(map(str, factors)))


def leg_counting(item: Item) -> Derivation:
    """The legs of each kind of animal, then their sum."""
    legs = importlib.import_module("reasoning_gym.arithmetic.leg_counting").ANIMALS
    lines: Lines = []
    total: int | None = None
    for animal, count in item.metadata["animals"].items():
        each = int(legs[animal])
        lines += [f"{count} {animal}: {each} legs", *multiply(int(count), each)]
        if total is not None:
            lines += add(total, int(count) * each)
        total = (total or 0) + int(count) * each
    return _stated(lines, total or 0)


def number_sorting(item: Item) -> Derivation:
    """The least (or greatest) of what is left, again and again. The numbers are whole, though written as 12.0."""
    rest = [int(float(number)) for number in item.metadata["original_numbers"]]
    name, choose = ("min", min) if item.metadata["direction"] == "ascending" else ("max", max)
    chosen: list[int] = []
    lines: Lines = []
    while rest:
        chosen.append(choose(rest))
        lines.append(f"{name}({','.join(map(str, rest))})={chosen[-1]}")
        rest.remove(chosen[-1])
    lines.append(",".join(map(str, chosen)))
    return Derivation("\n".join(lines), "[" + ", ".join(f"'{number}.0'" for number in chosen) + "]")


def _stated(lines: Lines, result: int) -> Derivation:
    return Derivation("\n".join(lines or [f"{result}={result}"]), str(result))


def _common_divisor(left: int, right: int) -> tuple[Lines, int]:
    """A remainder is found by long division below ten, else by a product and a difference."""
    lines: Lines = []
    larger, smaller = max(left, right), min(left, right)
    while smaller:
        times, remainder = divmod(larger, smaller)
        if smaller == 1:
            remainder = 0  # one divides all
        elif smaller < 10:
            lines += divide(larger, smaller)[0]
        else:
            lines += [f"{smaller}*{times}={smaller * times}", *subtract(larger, smaller * times)]
        larger, smaller = smaller, remainder
    return lines, larger
