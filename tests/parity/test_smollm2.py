"""The real model: SmolLM2's GGUF decodes greedily to what transformers' dequantised load of the file decodes to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepseek_r1.models.locate import locate_model
from deepseek_r1.serve.local import DeepSeekModel

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "In the beginning",
    "Water boils at",
    "1, 1, 2, 3, 5, 8,",
    "Once upon a time there was a",
    "The three laws of motion are",
    "SELECT name FROM users WHERE",
    "Dear Sir or Madam,\n\n",
    "A short poem about the sea:\n",
    "Question: What is 17 + 26?\nAnswer:",
    "    for i in range(10):\n        ",
    "The mitochondria is",
    "To bake bread, first",
    "Photosynthesis converts",
    "import numpy as np\n",
    "The opposite of hot is",
    "List of planets: Mercury, Venus,",
    "“Hello,” she said,",
    "ABC",
]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[DeepSeekModel, torch.nn.Module]]:
    path = locate_model("default")
    torch.set_num_threads(2)
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with DeepSeekModel.from_pretrained("default", precision="fp32", memory="3GiB") as model:
        yield model, reference
    torch.set_num_threads(1)


def test_greedy_equals_transformers(pair: tuple[DeepSeekModel, torch.nn.Module]) -> None:
    """Each of our tokens is the argmax of transformers' logits after the same tokens, so its greedy text is ours."""
    model, reference = pair
    done = model.generate(PROMPTS, temperature=0, max_tokens=64, logprobs=0)
    tokens = 0
    for prompt, answer in zip(PROMPTS, done, strict=True):
        ids = model.tokenizer.encode(prompt) + answer.token_ids
        with torch.no_grad():
            logits = reference(torch.tensor([ids])).logits[0, -len(answer.token_ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer.token_ids, prompt
        want = logits.double().log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None]).squeeze(1)
        got = torch.tensor([entry.logprob for entry in answer.logprobs], dtype=torch.float64)
        assert (want - got).abs().max() < 1e-3
        tokens += len(ids) - len(model.tokenizer.encode(prompt))
    assert tokens > 600


def test_weights_equal_transformers_bit_for_bit(pair: tuple[DeepSeekModel, torch.nn.Module]) -> None:
    _, reference = pair
    from deepseek_r1.config.precision import DeepSeekConfig
    from deepseek_r1.models.loading import load_decoder

    decoder = load_decoder(locate_model("default"), DeepSeekConfig(), pack=False)
    state = dict(reference.named_parameters())
    for ours, theirs in (
        ("embedding", "model.embed_tokens"),
        ("layers.7.attention.qkv.q_proj", "model.layers.7.self_attn.q_proj"),
        ("layers.7.attention.qkv.k_proj", "model.layers.7.self_attn.k_proj"),
        ("layers.29.mlp.down_proj", "model.layers.29.mlp.down_proj"),
        ("layers.29.mlp_norm", "model.layers.29.post_attention_layernorm"),
    ):
        assert torch.equal(decoder.get_parameter(f"{ours}.weight"), state[f"{theirs}.weight"])


def test_bf16_stays_close(pair: tuple[DeepSeekModel, torch.nn.Module]) -> None:
    """In bf16 the likeliest token is the same almost everywhere, and where not, fp32 has the two close together."""
    model, _ = pair
    with DeepSeekModel.from_pretrained("default", precision="bf16", memory="2GiB") as half:
        full = model.generate(PROMPTS[:8], temperature=0, max_tokens=12, logprobs=2)
        for prompt, want in zip(PROMPTS[:8], full, strict=True):
            ids = model.tokenizer.encode(prompt)
            for place, token in enumerate(want.token_ids):
                got = half.generate([*ids, *want.token_ids[:place]], temperature=0, max_tokens=1).token_ids[0]
                gap = want.logprobs[place].top_logprobs[0] - want.logprobs[place].top_logprobs[1]
                assert got == token or gap < 0.5, (prompt, place)
