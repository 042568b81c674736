"""The tiny model's own byte-level BPE tokenizer, written as the Hugging Face files that transformers and we load."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from tiny_r1_tasks import TASKS, Problem, draw

VOCABULARY = 512
PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SAMPLES = 6000  # problems that the vocabulary is learnt from

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- set text = message['content'] %}
{%- if message['role'] == 'assistant' and '</think>' in text %}
{%- set text = text.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""
"""Turns as in ChatML. As with R1 the answer begins inside the reasoning, and past reasoning is left out."""


def answer_text(problem: Problem) -> str:
    """What the model is to write after the prompt: reasoning, answer and the end of its turn."""
    return "\n".join(problem.steps) + f"\n</think>\n\n{problem.answer}{END}"


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over problems of its own, the same for every seed.

    Digits stand alone and made-up words are spelt in letters: what is in a number or a word need not be learnt.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random("tokenizer")
    names = tuple(TASKS)
    problems = [draw(rng, rng.choice(names), held_out=False) for _ in range(SAMPLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        min_frequency=20,
        special_tokens=[PAD, TURN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_plain_words, problems), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    return tokenizer


def _plain_words(problem: Problem) -> str:
    """The text of a problem with its made-up words, which stand in quotes, taken apart."""
    text = f"user\n{problem.question}\nassistant\n{answer_text(problem)}".replace(END, "")
    for word in re.findall(r'"([a-z]{2,})"', problem.question):
        for spelling in (word, word[::-1]):
            text = text.replace(spelling, " ".join(spelling))
    return text


def write_tokenizer(directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja, where they lack."""
    if (directory / "tokenizer.json").is_file():
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = train_tokenizer()
    named = {"bos_token": PAD, "eos_token": END, "pad_token": PAD}
    settings = named | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ids = {f"{name}_id": tokenizer.token_to_id(token) for name, token in named.items()}
    files = {
        "chat_template.jinja": CHAT_TEMPLATE,
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "generation_config.json": json.dumps(ids | {"do_sample": True, "temperature": 0.3}, indent=2) + "\n",
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",  # last: it says that the others are there
    }
    for name, content in files.items():
        write_text(directory / name, content)


def write_text(path: Path, content: str) -> None:
    """Write a file that appears only when all of it is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
