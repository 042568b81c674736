"""A GGUF file's tokenizer written as Hugging Face's files: this package and transformers read the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.text.load import load_tokenizer
from support import tiny

TEXTS = [
    "The capital of France is Paris.",
    "  two  spaces,\n\ttabs, 12345, naïve café, 日本語, 🙂‍↕️",
    "<|im_start|>user\n17 + 26 = ?<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "",
]
MESSAGES = [{"role": "user", "content": "What is 17 + 26?"}]


@pytest.fixture(scope="module")
def folder(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoder = load_decoder(tiny.save("llama", models_folder), DeepSeekConfig(), pack=False)
    return save_model(decoder, tmp_path_factory.mktemp("saved"), tokenizer_from=locate_model("default"))


def test_both_read_what_was_written(folder: Path) -> None:
    before, after, theirs = (
        load_tokenizer(locate_model("default")),
        load_tokenizer(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert after.token_bytes == before.token_bytes
    assert after.eos_token_ids == before.eos_token_ids and after.bos_token_id == before.bos_token_id
    assert after.special_tokens == before.special_tokens
    for text in TEXTS:
        ids = before.encode(text)
        assert after.encode(text) == theirs(text)["input_ids"] == ids
        assert after.decode(ids) == before.decode(ids)
    rendered = before.apply_chat_template(MESSAGES)
    assert after.apply_chat_template(MESSAGES) == rendered
    assert theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == rendered
