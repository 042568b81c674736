"""Chat templates: from a list of messages to the prompt text that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from deepseek_r1.core.errors import RequestError, TokenizerError
from deepseek_r1.models.text.template_sandbox import (
    Budget,
    ChatTemplateEnvironment,
    TemplateLimitError,
    TemplateRaisedError,
    budget,
)

MAX_SOURCE = 1 << 20  # characters; the longest published templates have a few ten thousand


class ChatTemplate:
    """A compiled chat template. `special_tokens` (`bos_token`, `eos_token`, …) are variables that it may use.

    Raises `TokenizerError` if the template is too long or does not compile. Safe to use from several threads.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        if len(source) > MAX_SOURCE:
            raise TokenizerError(f"the chat template has {len(source)} characters, more than {MAX_SOURCE}")
        try:
            self._template = ChatTemplateEnvironment().from_string(source)
        except TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template does not compile: line {error.lineno}: {error.message}",
                remedy="mend the template in the checkpoint",
            ) from error
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, TypeError) as error:
            raise TokenizerError(
                f"the chat template does not compile: {type(error).__name__}: {error}",
                remedy="mend the template in the checkpoint",
            ) from error

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt for `messages`; `variables` (`tools`, `enable_thinking`, …) are passed to the template.

        Raises `RequestError` when the template rejects the conversation (code `chat_template_rejected`) or cannot
        read it (`chat_template_error`), and `TokenizerError` when the template oversteps the sandbox or its limits.
        """
        values = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        token = budget.set(Budget())
        try:
            return self._template.render({name: _plain(value) for name, value in values.items()})
        except TemplateRaisedError as error:
            raise RequestError(str(error.message), param="messages", code="chat_template_rejected") from error
        except (TemplateLimitError, SecurityError, RecursionError, MemoryError) as error:
            raise TokenizerError(
                f"the chat template was stopped: {error or type(error).__name__}",
                remedy="use the template of a publisher you trust, or send a prompt to /v1/completions",
            ) from error
        except Exception as error:
            # Whatever else goes wrong in a template is about what these messages hold (or lack).
            raise RequestError(
                f"the chat template cannot render these messages: {type(error).__name__}: {error}",
                param="messages",
                code="chat_template_error",
                remedy="give each message the fields that the model's template reads",
            ) from error
        finally:
            budget.reset(token)


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends inside the model's reasoning: its last word is the open tag."""
    return prompt.rstrip().endswith("<think>")


def _plain(value: Any) -> Any:
    """`value` rebuilt from plain JSON types, so that a template meets no object with methods that do things."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    raise RequestError(
        f"a chat template cannot be given a value of type {type(value).__name__}", param="messages", code="invalid_type"
    )
