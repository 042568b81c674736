"""A small byte-level tokenizer under any chat template, and templates that treat the assistant's turns differently."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from deepseek_r1.models.text.chat_template import ChatTemplate
from deepseek_r1.models.text.tokenizer import Tokenizer, byte_level_bytes

SPECIAL = {
    name: f"<|{name}|>" for name in ("begin", "im_start", "im_end", "end_of_text", "user", "assistant", "end")
} | {"open": "<think>", "close": "</think>"}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

R1 = (
    "{{ '<|begin|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'].split('</think>')[-1] + '<|end_of_text|>' }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
"""In DeepSeek-R1's manner: the reasoning of every turn is dropped, and the generation prompt opens a new one."""

DROPS_EARLIER = (
    "{% for m in messages %}{% set words = m['content'] if loop.last else m['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + words | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""In Qwen3's manner: the last turn keeps its reasoning, the ones before it don't."""

CLOSES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|end_of_text|>' }}{% endif %}"
)
"""In Phi-3's manner: a conversation that is not to be continued ends with one more token."""

BARE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""No special tokens at all; a word's first token holds the space before it, which is the prompt's."""

CORPUS = ["system user assistant the quick brown fox: jumps over the lazy dog. 12345", "你好，世界 é 👋\n\nx"] * 20


def small_backend() -> tokenizers.Tokenizer:
    """A byte-level BPE of few merges with `SPECIAL` tokens; it puts `<|begin|>` before plain texts."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(list(SPECIAL.values()))
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return backend


def small_tokenizer(template: str | None = CHATML, *, backend: tokenizers.Tokenizer | None = None) -> Tokenizer:
    """The tokenizer over `small_backend`. `<|end_of_text|>`, `<|im_end|>` and `<|end|>` end texts and turns."""
    backend = backend or small_backend()
    special = {backend.token_to_id(word): word.encode() for word in SPECIAL.values()}
    tokens = [backend.id_to_token(index) for index in range(backend.get_vocab_size())]
    return Tokenizer(
        backend,
        token_bytes=[b"" if index in special else byte_level_bytes(token) for index, token in enumerate(tokens)],
        special_bytes=special,
        bos_token_id=backend.token_to_id("<|begin|>"),
        eos_token_ids=[backend.token_to_id(SPECIAL[name]) for name in ("end_of_text", "im_end", "end")],
        special_tokens={},
        chat_template=None if template is None else ChatTemplate(template),
    )
