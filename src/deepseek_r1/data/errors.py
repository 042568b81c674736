"""What can be wrong with training data: the error names the file, the line in it and the field at fault."""

from __future__ import annotations

from deepseek_r1.core.errors import DeepSeekError


class DataError(DeepSeekError):
    """Training data that can't be used as it is.

    `place` says where it stands (`talks.jsonl:12`, or the file), `field` which part of the record is at fault ("" for
    all of it), `problem` what is wrong with it.
    """

    def __init__(self, place: str, field: str, problem: str, *, remedy: str) -> None:
        super().__init__(": ".join(part for part in (place, field, problem) if part), remedy=remedy)
        self.place = place
        self.field = field
        self.problem = problem
