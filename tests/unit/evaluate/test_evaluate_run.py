"""What is asked, counted, kept and taken up again; with answers by a script and by a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deepseek_r1.core.errors import ConfigError, DeepSeekError, RequestError
from deepseek_r1.data.tasks.families import problems
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.evaluate.journal import FILE
from deepseek_r1.evaluate.question import Question
from deepseek_r1.evaluate.run import evaluate, sample_seed
from deepseek_r1.evaluate.statistics import cluster_bootstrap, wilson
from deepseek_r1.evaluate.targets import Ask, ModelTarget, Reply
from support.byte_model import OPENS


class Script:
    """Answers as told, last question first. Breaks off after `most` answers."""

    def __init__(self, say: Callable[[Ask], Reply], name: str = "script", most: int = 10**9) -> None:
        self.say, self.name, self.most = say, name, most
        self.asked: list[Ask] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": self.name}

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        for place in reversed(range(len(asks))):
            if len(self.asked) == self.most:
                raise DeepSeekError("the server has gone")
            self.asked.append(asks[place])
            yield place, self.say(asks[place])


def question(number: int, suite: str = "s", family: str = "f") -> Question:
    return Question(suite, family, str(number), f"say {number}", str(number), lambda text: float(text == str(number)))


QUESTIONS = [question(i) for i in range(10)]


def right(ask: Ask) -> Reply:
    return Reply(ask.prompt.removeprefix("say "), 3, False)


def below(limit: int) -> Callable[[Ask], Reply]:
    """Right for the numbers below `limit`."""
    return lambda ask: right(ask) if int(ask.prompt.split()[1]) < limit else Reply("?", 3, False)


def test_one_sample_each() -> None:
    script = Script(below(7))
    summary = evaluate(script, QUESTIONS, samples=1, temperature=0.0, max_tokens=9, seed=4)
    (row,) = summary.rows
    assert (row.suite, row.family, row.n, row.samples) == ("s", "f", 10, 1)
    assert (row.mean, row.truncated, row.tokens) == (0.7, 0, 30)
    assert (row.low, row.high) == wilson(7, 10)
    assert [(result.place, result.score) for result in summary.results] == [(str(i), float(i < 7)) for i in range(10)]
    assert {(ask.max_tokens, ask.temperature) for ask in script.asked} == {(9, 0.0)}
    assert {ask.name for ask in script.asked} == {f"s f {i}" for i in range(10)}


def test_pass_at_1_is_the_mean_over_samples_of_each_problem() -> None:
    """Problem i is answered right in the first i of its 4 samples."""
    place = {sample_seed(0, f"s f {i}", sample): sample for i in range(5) for sample in range(4)}
    assert len(place) == 20

    def say(ask: Ask) -> Reply:
        number = int(ask.prompt.split()[1])
        return right(ask) if place[ask.seed] < number else Reply("?", 1, False)

    (row,) = evaluate(Script(say), QUESTIONS[:5], samples=4).rows
    assert (row.n, row.samples, row.mean) == (5, 4, 0.5)
    assert (row.low, row.high) == cluster_bootstrap([0, 1, 2, 3, 4], [4] * 5)


def test_a_truncated_answer_is_wrong_and_counted() -> None:
    (row,) = evaluate(Script(lambda ask: Reply(right(ask).text, 5, ask.prompt == "say 3")), QUESTIONS).rows
    assert (row.mean, row.truncated, row.tokens) == (0.9, 1, 50)


def test_rows_by_family_and_over_all() -> None:
    asked = [question(1, "a", "x"), question(9, "b", "x"), question(2, "a", "y"), question(1, "a", "y")]
    rows = evaluate(Script(below(2)), asked).rows
    assert [(row.suite, row.family, row.n, row.mean) for row in rows] == [
        ("a", "x", 1, 1.0),
        ("b", "x", 1, 0.0),
        ("a", "y", 2, 0.5),
        ("a", "all", 3, 2 / 3),
    ]


def test_seeds_are_a_function_of_seed_problem_and_sample() -> None:
    def seeds(seed: int, some: Sequence[Question]) -> dict[tuple[str, int], int]:
        script = Script(right)
        evaluate(script, some, samples=3, seed=seed)
        by_name: dict[str, list[int]] = {}
        for ask in reversed(script.asked):
            by_name.setdefault(ask.name, []).append(ask.seed)
        return {(name, place): found for name, each in by_name.items() for place, found in enumerate(each)}

    first = seeds(1, QUESTIONS)
    assert len(set(first.values())) == 30 and all(0 <= found < 2**31 for found in first.values())
    assert seeds(1, QUESTIONS[5:6]).items() <= first.items(), "whatever is asked besides"
    assert not set(seeds(2, QUESTIONS).values()) & set(first.values())


def test_a_run_that_was_cut_goes_on(tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    broken = Script(below(7), most=13)
    with pytest.raises(DeepSeekError, match="gone"):
        evaluate(broken, QUESTIONS, samples=2, out=tmp_path)
    assert len((tmp_path / FILE).read_text().splitlines()) == 13
    assert not (tmp_path / "summary.json").exists()
    rest = Script(below(7))
    summary = evaluate(rest, QUESTIONS, samples=2, out=tmp_path, progress=lambda *pair: shown.append(pair))
    assert len(rest.asked) == 7 and not {a.seed for a in rest.asked} & {a.seed for a in broken.asked}
    assert shown == [(done, 20) for done in range(13, 21)]
    assert summary.rows == evaluate(Script(below(7)), QUESTIONS, samples=2).rows
    again = Script(below(0))
    assert evaluate(again, QUESTIONS, samples=2, out=tmp_path).rows == summary.rows
    assert again.asked == []


def test_more_samples_ask_for_the_new_ones_alone(tmp_path: Path) -> None:
    evaluate(Script(right), QUESTIONS, samples=2, out=tmp_path)
    more = Script(below(0))
    (row,) = evaluate(more, QUESTIONS, samples=3, out=tmp_path).rows
    assert len(more.asked) == 10 and row.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.7}, {"max_tokens": 5}, {"seed": 1}, {"model": "other"}, {"prompt": "say it: 3"}]
)
def test_other_settings_are_another_answer(change: dict[str, Any], tmp_path: Path) -> None:
    words: dict[str, Any] = {"temperature": 0.6, "max_tokens": 9, "seed": 0}
    evaluate(Script(right), QUESTIONS[3:4], **words, out=tmp_path)
    script = Script(right, change.pop("model", "script"))
    prompt = change.pop("prompt", "say 3")
    asked = Question("s", "f", "3", prompt, "3", lambda text: 1.0)
    evaluate(script, [asked], **(words | change), out=tmp_path)
    assert len(script.asked) == 1
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


def test_the_summary_on_file(tmp_path: Path) -> None:
    summary = evaluate(Script(below(7)), QUESTIONS, out=tmp_path, seed=3)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["kind"] == "deepseek-evaluation" and found["rows"][0]["mean"] == 0.7
    want = {"model": "script", "samples": 1, "temperature": 0.6, "max_tokens": 1024, "seed": 3}
    assert found["settings"] == want
    assert (tmp_path / "summary.md").read_text() == summary.markdown + "\n"
    header, rule, line = summary.markdown.splitlines()
    assert header == "| suite | family | n | samples | mean | 95 % | truncated | tokens |"
    assert re.fullmatch(r"\|( ---:? \|){8}", rule)
    assert line == "| s | f | 10 | 1 | 70.0 % | 39.7 to 89.2 % | 0 | 30 |"
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "summary.json", "summary.md"]


def test_nothing_to_ask() -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate(Script(right), [])


def test_reasoning_problems_are_taken_as_they_are() -> None:
    pytest.importorskip("reasoning_gym")
    found = list(problems("gcd", 1, 0, 4, "test"))
    answers = {problem.question: problem.answer for problem in found}
    script = Script(lambda ask: Reply(f"<think>\nhm\n</think>\n{answers[ask.prompt]}", 4, False))
    (row,) = evaluate(script, found).rows
    assert (row.suite, row.family, row.n, row.mean) == ("reasoning", "gcd", 4, 1.0)


# --- a model in this process ------------------------------------------------------------------------------------------


def asks(count: int, tokens: int = 12) -> list[Ask]:
    return [Ask(f"q{i}", f"question {i % 4}", tokens, 1.0, i) for i in range(count)]


def test_a_models_answers_are_those_of_its_engine_alone(target: Callable[..., ModelTarget]) -> None:
    mine = target()
    found = dict(mine.answers(asks(11)))
    assert sorted(found) == list(range(11))
    assert not mine.engine.has_work
    for place, ask in enumerate(asks(11)):
        ids = mine.tokenizer.encode(f"<{ask.prompt}>", add_special_tokens=False)
        mine.engine.submit(GenerateRequest("alone", ids, SamplingParams(12, seed=ask.seed)))
        out: list[int] = []
        while mine.engine.has_work:
            out += [token for output in mine.engine.step() for token in output.token_ids]
        assert found[place] == Reply(mine.tokenizer.decode(out), 12, True)
    assert len({reply.text for reply in found.values()}) == 11


def test_a_model_that_begins_inside_its_thinking(target: Callable[..., ModelTarget]) -> None:
    ((_, reply),) = target(OPENS).answers(asks(1, 3))
    assert reply.text.startswith("<think>\n") and reply.tokens == 3


def test_a_run_that_is_given_up_leaves_the_engine_empty(target: Callable[..., ModelTarget]) -> None:
    mine = target()
    answers = mine.answers(asks(20))
    next(answers)
    assert mine.engine.has_work
    answers.close()  # type: ignore[attr-defined]
    assert not mine.engine.has_work
    assert len(dict(mine.answers(asks(3)))) == 3


def test_a_question_that_does_not_fit(target: Callable[..., ModelTarget]) -> None:
    mine = target()
    with pytest.raises(RequestError, match="q0: this model's context holds") as error:
        list(mine.answers(asks(1, 512)))
    assert "--max-tokens" in error.value.remedy


def test_the_same_figures_whatever_the_batch(target: Callable[..., ModelTarget]) -> None:
    graded = [Question("s", "f", str(i), f"question {i}", "", lambda text: float(len(text) % 2 == 0)) for i in range(6)]
    words: dict[str, Any] = {"samples": 3, "temperature": 1.0, "max_tokens": 10}
    one, four = (evaluate(target(max_concurrent=size), graded, **words) for size in (1, 4))
    assert one == four
