"""Written arithmetic, a digit a line: what a model that can't add two numbers at once can still do right.

Every line is a true equation. After a colon stands the result as far as it is known, so that the next line only has to
put one digit before it (or, in a division, behind it). Numbers below ten take one line and no columns.
"""

from __future__ import annotations

Lines = list[str]


def add(left: int, right: int) -> Lines:
    """Lines that end in `left+right=sum`, for any signs: first rewritten so that both are positive, then by columns."""
    total = left + right
    if abs(left) < 10 and abs(right) < 10:
        return [f"{left}+{right}={total}"]
    if left >= 0 and right >= 0:
        return [*_sum_columns(left, right), f"{left}+{right}={total}"]
    if left >= 0:
        return [f"{left}+{right}={left}-{-right}", *subtract(left, -right)]
    if right >= 0:
        return [f"{left}+{right}={right}-{-left}", *subtract(right, -left)]
    return [f"{left}+{right}=-({-left}+{-right})", *add(-left, -right), f"{left}+{right}={total}"]


def subtract(left: int, right: int) -> Lines:
    """Lines that end in an equation with the difference as its right side, for any signs."""
    difference = left - right
    if abs(left) < 10 and abs(right) < 10:
        return [f"{left}-{right}={difference}"]
    if right < 0:
        return [f"{left}-{right}={left}+{-right}", *add(left, -right)]
    if left < 0:
        return [f"{left}-{right}=-({-left}+{right})", *add(-left, right), f"{left}-{right}={difference}"]
    if left < right:
        return [f"{left}-{right}=-({right}-{left})", *subtract(right, left), f"{left}-{right}={difference}"]
    return [*_difference_columns(left, right), f"{left}-{right}={difference}"]


def multiply(left: int, right: int) -> Lines:
    """Lines that end in `left*right=product`, for any signs: one partial product for each digit of the shorter."""
    product = left * right
    if left < 0 or right < 0:
        positive = [] if abs(left) < 10 and abs(right) < 10 else multiply(abs(left), abs(right))
        return [*positive, f"{left}*{right}={product}"]
    long, short = max(left, right), min(left, right)
    if long < 10 or short < 2:
        return [f"{left}*{right}={product}"]
    if short < 10:
        return [*_product_columns(long, short), f"{left}*{right}={product}"]
    lines: Lines = []
    known = 0
    for place, digit in enumerate(reversed(str(short))):
        if digit == "0":
            continue
        part = int(digit) * 10**place
        lines += [*(_product_columns(long, int(digit)) if digit != "1" else []), f"{long}*{part}={long * part}"]
        if known:
            lines += add(known, long * part)
        known += long * part
    return [*lines, f"{left}*{right}={product}"]


def divide(dividend: int, divisor: int) -> tuple[Lines, int, int]:
    """Long division of positive numbers: the lines, the quotient and the remainder.

    A line `25=4*6+1:6` takes one digit of the dividend. Multiples of a divisor above ten are listed first, as far as
    they are needed. The last line is `252/4=63` where the division is exact.
    """
    if dividend < 1 or divisor < 1:
        raise ValueError(f"{dividend}/{divisor} is not a division of positive numbers")
    lines: Lines = []
    remainder, known = 0, ""
    for place, digit in enumerate(str(dividend)):
        current = remainder * 10 + int(digit)
        if not known and current < divisor and place + 1 < len(str(dividend)):
            remainder = current  # the quotient begins at the first digit that is not zero
            continue
        times, remainder = divmod(current, divisor)
        if divisor > 10:
            lines += [f"{divisor}*{factor}={divisor * factor}" for factor in range(1, times + 1)]
        known += str(times)
        lines.append(f"{current}={divisor}*{times}+{remainder}:{known}")
    if remainder == 0:
        lines.append(f"{dividend}/{divisor}={known}")
    return lines, int(known), remainder


def _sum_columns(left: int, right: int) -> Lines:
    lines: Lines = []
    carry, known = 0, ""
    width = max(len(str(left)), len(str(right)))
    for place in range(width):
        one, other = _digit(left, place), _digit(right, place)
        total = one + other + carry
        known = (str(total) if place == width - 1 else str(total % 10)) + known
        lines.append(f"{one}+{other}+{carry}={total:02d}:{known}")
        carry = total // 10
    return lines


def _difference_columns(left: int, right: int) -> Lines:
    """`left` is not below `right`. A ten is put before a digit that would be too small; the next column returns it."""
    lines: Lines = []
    borrowed, known = 0, ""
    for place in range(len(str(left))):
        one, other = _digit(left, place), _digit(right, place)
        too_small = one < other + borrowed
        one += 10 if too_small else 0
        known = str(one - other - borrowed) + known
        lines.append(f"{one}-{other}-{borrowed}={one - other - borrowed}:{known}")
        borrowed = int(too_small)
    return lines


def _product_columns(number: int, digit: int) -> Lines:
    lines: Lines = []
    carry, known = 0, ""
    width = len(str(number))
    for place in range(width):
        one = _digit(number, place)
        total = one * digit + carry
        known = (str(total) if place == width - 1 else str(total % 10)) + known
        lines.append(f"{one}*{digit}+{carry}={total:02d}:{known}")
        carry = total // 10
    return lines


def _digit(number: int, place: int) -> int:
    return int(number // 10**place) % 10
