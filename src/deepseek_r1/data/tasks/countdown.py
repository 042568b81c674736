"""Traces of countdown: a formula for the target out of the given numbers, found by a search that is never long."""

from __future__ import annotations

from deepseek_r1.data.tasks.columns import Lines, add, divide, subtract
from deepseek_r1.data.tasks.item import Derivation, Item

MAX_FACTOR = 9
"""Numbers above it come without products (levels 2 and 4): larger products are not made in one step."""


def countdown(item: Item) -> Derivation:
    """By the search that suits: over sums alone, or over products too."""
    only_sums = item.metadata["difficulty"]["value"][1] > MAX_FACTOR
    return _sums(item) if only_sums else _with_products(item)


def _sums(item: Item) -> Derivation:
    """Numbers to be added or subtracted: what exceeds the target in their sum is twice what has to be subtracted."""
    numbers, target = [int(number) for number in item.metadata["numbers"]], int(item.metadata["target"])
    total, lines = numbers[0], Lines()
    for number in numbers[1:]:
        lines += add(total, number)
        total += number
    lines += subtract(total, target)
    excess = total - target
    negative: list[int] = []
    if excess:
        lines += divide(excess, 2)[0]
        negative = _with_sum(numbers, excess // 2)
        lines.append(f"{'+'.join(map(str, negative))}={excess // 2}")
    positive = list(numbers)
    for number in negative:
        positive.remove(number)
    answer = "+".join(map(str, positive)) + "".join(f"-{number}" for number in negative)
    return Derivation("\n".join([*lines, f"{answer}={target}"]), answer)


def _with_products(item: Item) -> Derivation:
    """Two or three numbers, and products too: what the last number needs of the others, and what those can make."""
    numbers, target = [int(number) for number in item.metadata["numbers"]], int(item.metadata["target"])
    lines: Lines = []
    if len(numbers) == 2:
        made = _made(*numbers)
        answer = made.get(target, "")
        lines += [f"{formula}={value}" for value, formula in made.items()][: list(made).index(target) + 1]
        return Derivation("\n".join(lines), answer)
    for place, last in enumerate(numbers):
        needed = _needed(target, last)
        made = _made(*numbers[:place], *numbers[place + 1 :])
        lines += [f"{formula}={value}" for value, (formula, _) in needed.items()]
        lines += [f"{formula}={value}" for value, formula in made.items()]
        for value, (_, ending) in needed.items():
            if value in made:
                answer = ending.format(made[value])
                return Derivation("\n".join([*lines, f"{answer}={target}"]), answer)
    raise ValueError(f"{numbers} do not make {target}")


def _with_sum(numbers: list[int], total: int) -> list[int]:
    """The fewest, and of those the first, of `numbers` with that sum."""
    choices: list[tuple[list[int], int]] = [([], 0)]
    for _ in numbers:
        choices = [
            ([*chosen, place], known + number)
            for chosen, known in choices
            for place, number in enumerate(numbers)
            if place > max(chosen, default=-1)
        ]
        for chosen, known in choices:
            if known == total:
                return [numbers[place] for place in chosen]
    raise ValueError(f"no numbers of {numbers} have the sum {total}")


def _made(left: int, right: int) -> dict[int, str]:
    """What two numbers make, as value -> formula."""
    larger, smaller = max(left, right), min(left, right)
    made = {left + right: f"{left}+{right}"}
    made.setdefault(larger - smaller, f"{larger}-{smaller}")
    made.setdefault(left * right, f"{left}*{right}")
    return made


def _needed(target: int, last: int) -> dict[int, tuple[str, str]]:
    """Values from which `last` makes the target -> (the formula of the value, how the target is made of it)."""
    needed = {target + last: (f"{target}+{last}", f"{{}}-{last}")}
    if target >= last:
        needed[target - last] = f"{target}-{last}", f"{{}}+{last}"
    else:
        needed[last - target] = f"{last}-{target}", f"{last}-({{}})"
    if target % last == 0:
        needed.setdefault(target // last, (f"{target}/{last}", f"({{}})*{last}"))
    return needed
