"""Every error a user can meet: what was wrong, where, and how to mend it."""

from __future__ import annotations

from os import PathLike


class DeepSeekError(Exception):
    """Base of all errors raised on purpose by this package.

    `message` says what was wrong and where, `remedy` says how to mend it. The CLI prints both on one
    line each and exits with `exit_code`; the server turns them into an OpenAI error object.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class ConfigError(DeepSeekError):
    """A setting that does not exist, or a value outside its range."""

    exit_code = 2


class UnsupportedError(DeepSeekError):
    """Something real that this version does not do (yet): the message says so by name."""

    exit_code = 2


class ModelNotFoundError(DeepSeekError):
    """A model name that is neither a path, nor the embedded default, nor reachable on the hub."""


class CheckpointError(DeepSeekError):
    """A checkpoint that is truncated, inconsistent or hostile.

    `path` names the file, `field` the header field, metadata key or tensor at fault.
    """

    def __init__(
        self, path: str | PathLike[str], field: str, problem: str, *, remedy: str = "fetch the file again"
    ) -> None:
        super().__init__(f"{path}: {field}: {problem}", remedy=remedy)
        self.path = str(path)
        self.field = field
        self.problem = problem


class TokenizerError(DeepSeekError):
    """A tokenizer or chat template that cannot be built or rendered."""


class RequestError(DeepSeekError):
    """A request that can never be served as it is. `param` names the field at fault, `code` is OpenAI's."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.param = param
        self.code = code


class CapacityError(DeepSeekError):
    """Memory, disk or queue space that is not there."""


class EngineDiedError(DeepSeekError):
    """The engine process ended while the request was in flight; nothing of the request is lost on the API side."""
