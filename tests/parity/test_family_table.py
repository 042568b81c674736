"""docs/families.md says what the comparison finds."""

from __future__ import annotations

import re
from pathlib import Path

from family_table import PAGE, compare, render
from test_families import TOLERANCE

from deepseek_r1.models.registry import FAMILIES

MEASURED = re.compile(r"\d\.\de-\d\d")


def test_the_page_is_what_the_comparison_makes(models_folder: Path) -> None:
    rows = compare(models_folder)
    assert {row.family for row in rows} == set(FAMILIES) - {"deepseek_r1"}, (
        "the own architecture has no reference there"
    )
    assert all(max(row.prefill, row.decode) <= TOLERANCE for row in rows)
    page = PAGE.read_text(encoding="utf-8")
    assert MEASURED.sub("#", page) == MEASURED.sub("#", render(rows)), "run `make docs`"
    # What the page says was measured, on whatever machine, kept the tolerance too.
    figures = [float(figure) for figure in MEASURED.findall(page)]
    assert len(figures) == 2 * len(rows) and max(figures) <= TOLERANCE
