"""The verb `generate`."""

from __future__ import annotations

import json
import sys

from deepseek_r1.cli.opened import open_model
from deepseek_r1.cli.terminal import AnswerPrinter
from deepseek_r1.config.generate import GenerateConfig
from deepseek_r1.core.errors import ConfigError


def generate(config: GenerateConfig) -> int:
    """Continue one prompt: the text as it comes, or one JSON object at the end."""
    prompt = _prompt(config)
    model, config = open_model(config)
    with model:
        if config.json:
            done = model.generate(prompt, **config.sampling)
            print(
                json.dumps(
                    {
                        "text": done.text,
                        "reasoning": done.reasoning,
                        "finish_reason": done.finish_reason,
                        "prompt_tokens": done.prompt_tokens,
                        "completion_tokens": len(done.token_ids),
                        "token_ids": list(done.token_ids),
                    },
                    ensure_ascii=False,
                )
            )
            return 0
        printer = AnswerPrinter(sys.stdout)
        for chunk in model.generate(prompt, stream=True, **config.sampling):
            printer.push(chunk.text, chunk.reasoning)
        printer.end()
    return 0


def _prompt(config: GenerateConfig) -> str:
    if config.prompt is None and sys.stdin.isatty():
        raise ConfigError("there is no prompt", remedy="give --prompt TEXT, or send the text to standard input")
    prompt = sys.stdin.read() if config.prompt is None else config.prompt
    if not prompt:
        raise ConfigError("the prompt is empty", remedy="give --prompt TEXT, or send the text to standard input")
    return prompt
