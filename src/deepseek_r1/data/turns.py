"""Which letters of a rendered conversation are the assistant's own, so that the loss asks for those and no others."""

from __future__ import annotations

from typing import Any

from deepseek_r1.core.errors import RequestError
from deepseek_r1.data.errors import DataError
from deepseek_r1.data.tokenizer import TextTokenizer

OPEN, CLOSE = "<think>", "</think>"
STAND_IN = "stand-in"
"""An answer without meaning: what a template writes after it is how the template ends a turn."""

Messages = list[dict[str, Any]]
Span = tuple[int, int]


class Conversation:
    """A conversation under the chat template of `tokenizer`. `place` says in errors where it stands."""

    def __init__(self, messages: Messages, tokenizer: TextTokenizer, place: str) -> None:
        self.messages = messages
        self.place = place
        self._tokenizer = tokenizer
        self._ends = [tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.eos_token_ids]

    def text(self) -> str:
        """All messages as the template writes them. Raises `DataError` when the template refuses them."""
        return self._render(self.messages, False)

    def complete_text(self) -> str:
        """`text`, which holds every word of the assistant. Raises `DataError` where the template leaves some out."""
        text = self.text()
        for turn, message in enumerate(self.messages):
            if message["role"] == "assistant" and message["content"].strip() not in text:
                raise self._rewritten(turn)
        return text

    def spoken(self, turns: list[int]) -> tuple[str, list[Span]]:
        """The text up to the last of `turns`, and where in it each of these messages of the assistant stands.

        A span begins where generation would begin and ends after the token that ends the turn. Raises `DataError` when
        the template writes an earlier turn otherwise than it was when it was the last one: then no text holds what the
        model would have read and said in both. A single turn is put together from the prompt and its own words.
        """
        whole = self._render(self.messages[: turns[-1] + 1], False)
        spans = [self._span(turn, whole) for turn in turns]
        found = [span for span in spans if span is not None]
        if len(found) == len(turns):
            return whole, found
        if len(turns) == 1:
            return self._put_together(turns[0])
        raise self._rewritten(turns[spans.index(None)])

    def _span(self, turn: int, whole: str) -> Span | None:
        """Where a turn stands in `whole`, None where the template has not kept the prompt before it and its words."""
        prompt = self._prompt(turn)
        content = self.messages[turn]["content"]
        words = content if (rest := _after_opening(prompt, content)) is None else rest
        so_far = self._render(self.messages[: turn + 1], False)
        # Some templates write one more token where a conversation ends: then only what is common is this turn.
        stop = _common_letters(so_far, whole)
        if not whole.startswith(prompt) or words.strip() not in whole[len(prompt) : stop]:
            return None
        end = self._end_of_turn(whole, len(prompt), stop)
        if end is None and stop == len(so_far):
            end = len(whole[:stop].rstrip())
        return None if end is None else (len(prompt), end)

    def _put_together(self, turn: int) -> tuple[str, list[Span]]:
        """Prompt, the turn's words and the template's end of a turn, for templates that would leave out some words."""
        prompt = self._prompt(turn)
        words = _after_opening(prompt, self.messages[turn]["content"])
        if words is None:
            raise self._error(
                turn,
                f"the chat template opens {OPEN} before the answer, and the answer doesn't close it",
                f"begin the answer with {OPEN}reasoning{CLOSE}, or with {OPEN}{CLOSE} where there is none",
            )
        answered = self._render([*self.messages[:turn], {"role": "assistant", "content": STAND_IN}], False)
        _, found, ending = answered.rpartition(STAND_IN)
        if not found:
            raise self._error(
                turn, "the chat template leaves out the assistant's answer", "use a template that writes it"
            )
        text = prompt + words + ending
        return text, [(len(prompt), self._end_of_turn(text, len(prompt), len(text)) or len(text.rstrip()))]

    def _end_of_turn(self, text: str, start: int, stop: int) -> int | None:
        """The end of the last end-of-turn token between two places of a text."""
        places = [(text.rfind(end, start, stop), end) for end in self._ends if end]
        return max((place + len(end) for place, end in places if place >= 0), default=None)

    def _prompt(self, turn: int) -> str:
        if turn == 0:
            raise self._error(turn, "the assistant speaks first", "begin with a message of the user or the system")
        return self._render(self.messages[:turn], True)

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
        except RequestError as error:
            if error.code == "chat_template_missing":
                raise DataError(
                    self.place,
                    "messages",
                    "the model has no chat template",
                    remedy="use an instruction-tuned model, or records with prompt and completion, or with text",
                ) from None
            raise DataError(
                self.place,
                "messages",
                f"refused by the chat template: {error.message}",
                remedy="mend the conversation, or leave it out",
            ) from None

    def _rewritten(self, turn: int) -> DataError:
        return self._error(
            turn,
            "the chat template rewrites this turn of the assistant (it may drop the reasoning)",
            "train on the last turn of each conversation: train_on=last",
        )

    def _error(self, turn: int, problem: str, remedy: str) -> DataError:
        return DataError(self.place, f"messages[{turn}]", problem, remedy=remedy)


def _common_letters(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    if other.startswith(one):
        return len(one)
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def _after_opening(prompt: str, content: str) -> str | None:
    """What is left to say of an answer when its prompt may have opened the reasoning already.

    None when the prompt has and the answer holds no reasoning.
    """
    if not prompt.rstrip().endswith(OPEN):
        return content
    if CLOSE not in content:
        return None
    opening = prompt[prompt.rindex(OPEN) :]
    content = content.lstrip()
    return content.removeprefix(opening if content.startswith(opening) else OPEN)
