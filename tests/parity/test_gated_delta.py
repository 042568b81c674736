"""Gated-delta attention, and its gradients, equal the float64 recurrence and transformers' layer, split anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from deepseek_r1.engine.paged import KVCache, Paged, Span
from deepseek_r1.kernels import delta_reference, ops
from deepseek_r1.layers.context import Packed
from deepseek_r1.layers.gated_delta import GatedDelta

TOLERANCE = 1e-5
LAYER_TOLERANCE = 1e-4
DIM, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 48, 2, 6, 12, 16
LENGTHS = (1, 2, 3, 63, 64, 65, 100, 129, 200)


def inputs_of(length: int, batch: int = 2, seed: int = 0, decay: float = 0.3) -> list[torch.Tensor]:
    """q, k (norm 1), v, g, beta and a state; keys repeat, so that the rule has something to correct."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    few = torch.nn.functional.normalize(normal(batch, 5, KEY_HEADS, KEY_DIM), dim=-1)
    k = few[:, torch.randint(0, 5, (length,), generator=generator)] + 0.1 * normal(batch, length, KEY_HEADS, KEY_DIM)
    q = torch.nn.functional.normalize(normal(batch, length, KEY_HEADS, KEY_DIM), dim=-1)
    v = normal(batch, length, VALUE_HEADS, VALUE_DIM)
    g = -decay * normal(batch, length, VALUE_HEADS).exp()
    beta = (2 * normal(batch, length, VALUE_HEADS)).sigmoid()
    state = normal(batch, VALUE_HEADS, KEY_DIM, VALUE_DIM)
    return [q, torch.nn.functional.normalize(k, dim=-1), v, g, beta, state]


def recurrence(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, token by token and head by head, in float64."""
    q, k, v, g, beta, state = (x.double() for x in inputs)
    out = []
    for b in range(v.shape[0]):
        heads = []
        for h in range(v.shape[2]):
            key_head = h // (v.shape[2] // k.shape[2])
            memory, rows = state[b, h], []
            for t in range(v.shape[1]):
                memory = g[b, t, h].exp() * memory
                wrong = v[b, t, h] - memory.T @ k[b, t, key_head]
                memory = memory + beta[b, t, h] * torch.outer(k[b, t, key_head], wrong)
                rows.append(memory.T @ q[b, t, key_head])
            heads.append((torch.stack(rows), memory))
        out.append((torch.stack([rows for rows, _ in heads], dim=1), torch.stack([memory for _, memory in heads])))
    return torch.stack([rows for rows, _ in out]), torch.stack([memory for _, memory in out])


def worst(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("decay", [0.003, 0.3, 30.0], ids=["long memory", "medium", "short memory"])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_recurrence(length: int, decay: float) -> None:
    inputs = inputs_of(length, decay=decay)
    want = recurrence(*inputs)
    assert want[0].std() > 0.03
    assert worst(ops.gated_delta(*inputs), want) <= TOLERANCE


def test_a_strong_decay_leaves_later_ones_their_digits() -> None:
    inputs = inputs_of(64, decay=0.01)
    inputs[3][:, 5] = -3000.0
    assert worst(ops.gated_delta(*inputs), recurrence(*inputs)) <= TOLERANCE


@settings(max_examples=40, deadline=None)
@given(length=st.integers(2, 180), data=st.data())
def test_split_anywhere_equals_whole(length: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=5)))
    *inputs, state = inputs_of(length, seed=length, decay=0.05)
    whole = ops.gated_delta(*inputs, state)
    parts = []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        part, state = ops.gated_delta(*(x[:, start:end] for x in inputs), state)
        parts.append(part)
    assert worst((torch.cat(parts, dim=1), state), whole) <= TOLERANCE


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(100)
    want = recurrence(*inputs)
    q, k, v, g, beta, state = inputs
    assert worst(ops.gated_delta(q, k, v, torch.zeros_like(g), beta, state), want) > 1e-2
    assert worst(ops.gated_delta(q, k, v, g, torch.ones_like(beta), state), want) > 1e-2
    assert worst(ops.gated_delta(q, k, v, g, beta, torch.zeros_like(state)), want) > 1e-2
    monkeypatch.setattr(torch.linalg, "solve_triangular", lambda system, right, **_: right)
    assert worst(ops.gated_delta(*inputs), want) > 1e-2, "linear attention that doesn't correct itself"


@pytest.mark.parametrize("length", [1, 70])
def test_gradients_equal_those_of_the_recurrence(length: int) -> None:
    inputs = [x.requires_grad_() for x in inputs_of(length, batch=1, decay=0.1)]
    probes = [torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) for x in ops.gated_delta(*inputs)]

    def gradients(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        total = sum((result * probe).sum() for result, probe in zip(results, probes, strict=True))
        return torch.autograd.grad(total, inputs)

    for got, want in zip(gradients(ops.gated_delta(*inputs)), gradients(recurrence(*inputs)), strict=True):
        assert want.abs().max() > 0.1
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_convolution_equals_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 9, 7, generator=generator), torch.randn(7, 4, generator=generator)
    tail = torch.randn(2, 3, 7, generator=generator)
    want = torch.nn.functional.conv1d(torch.cat((tail, x), 1).transpose(1, 2), weight[:, None], groups=7).transpose(
        1, 2
    )
    got, after = ops.causal_conv(x, tail, weight)
    assert (got - want).abs().max() <= TOLERANCE
    first, middle = ops.causal_conv(x[:, :2], tail, weight)  # fewer tokens than the tail holds
    second, end = ops.causal_conv(x[:, 2:], middle, weight)
    assert torch.equal(torch.cat((first, second), 1), got) and torch.equal(after, end)


@pytest.fixture(scope="module")
def reference() -> Qwen3NextGatedDeltaNet:
    """transformers' layer with weights at which decay, rate, gate and memory all matter."""
    config = Qwen3NextConfig(
        hidden_size=DIM,
        linear_num_key_heads=KEY_HEADS,
        linear_num_value_heads=VALUE_HEADS,
        linear_key_head_dim=KEY_DIM,
        linear_value_head_dim=VALUE_DIM,
        linear_conv_kernel_dim=4,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    torch.manual_seed(5)
    layer = Qwen3NextGatedDeltaNet(config, 0).float().eval()
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if weight.dim() > 1:
                fan_in = 4 if "conv" in name else weight.shape[-1]
                weight.copy_(1.5 * torch.randn_like(weight) / fan_in**0.5)
        layer.norm.weight.copy_(1 + 0.3 * torch.randn(VALUE_DIM))
        layer.A_log.copy_(torch.linspace(0.01, 3, VALUE_HEADS).log())
        layer.dt_bias.copy_(torch.randn(VALUE_HEADS) - 2)
    return layer


def converted(reference: Qwen3NextGatedDeltaNet) -> GatedDelta:
    """Our layer with the same weights: theirs stand by key head, q | k | v | z and b | a."""
    dtypes = dict.fromkeys(("linear_dtype", "norm_dtype", "activation_dtype"), torch.float32)
    layer = GatedDelta(
        0,
        dim=DIM,
        key_heads=KEY_HEADS,
        value_heads=VALUE_HEADS,
        key_dim=KEY_DIM,
        value_dim=VALUE_DIM,
        norm_eps=reference.layer_norm_epsilon,
        **dtypes,
    )
    group = VALUE_HEADS // KEY_HEADS
    wide = reference.in_proj_qkvz.weight.detach().view(KEY_HEADS, -1, DIM)
    narrow = reference.in_proj_ba.weight.detach().view(KEY_HEADS, -1, DIM)
    parts = {}
    parts["q_proj"], parts["k_proj"], parts["v_proj"], parts["gate_proj"] = wide.split(
        [KEY_DIM, KEY_DIM, group * VALUE_DIM, group * VALUE_DIM], dim=1
    )
    parts["beta_proj"], parts["decay_proj"] = narrow.split([group, group], dim=1)
    state = {f"inputs.{name}.weight": part.reshape(-1, DIM) for name, part in parts.items()}
    state["conv_weight"] = reference.conv1d.weight.detach()[:, 0]
    state["A_log"], state["dt_bias"] = reference.A_log.detach(), reference.dt_bias.detach()
    state["norm.weight"], state["o_proj.weight"] = reference.norm.weight.detach(), reference.out_proj.weight.detach()
    layer.load_state_dict(state)
    return layer


def hidden(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(length, DIM, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run_paged(layer: GatedDelta, sequences: list[torch.Tensor], steps: list[list[int]]) -> list[torch.Tensor]:
    """Results of the sequences; a step gives each one's token count. The slots hold something else at first."""
    cache = KVCache([layer.layout], 1, 16, slots=len(sequences) + 1)
    for state in cache.states[0]:
        state.fill_(torch.nan)
    out: list[list[torch.Tensor]] = [[] for _ in sequences]
    done = [0] * len(sequences)
    for counts in steps:
        order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: counts[i] > 1)
        spans = [Span(done[i], counts[i], [], len(sequences) - i) for i in order]
        flat = torch.cat([sequences[i][done[i] : done[i] + counts[i]] for i in order])
        results = layer(flat, None, Paged(cache, spans)).split([counts[i] for i in order])
        for i, result in zip(order, results, strict=True):
            out[i].append(result)
            done[i] += counts[i]
    return [torch.cat(parts) for parts in out]


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_layer_equals_transformers(reference: Qwen3NextGatedDeltaNet, length: int) -> None:
    layer, x = converted(reference), hidden(length)
    want = reference(x[None])[0]
    assert want.std() > 0.5
    assert (layer(x, None, Packed([length])) - want).abs().max() <= LAYER_TOLERANCE
    plans = [[length], [1] * length]
    if length > 20:
        plans.append([2, 17, 1, length - 20])
    for plan in plans:
        (got,) = run_paged(layer, [x], [[count] for count in plan])
        assert (got - want).abs().max() <= LAYER_TOLERANCE


@torch.no_grad()
def test_layer_controls_fail(reference: Qwen3NextGatedDeltaNet) -> None:
    """With a part of the layer off, the same comparison is far outside the tolerance."""
    x = hidden(60)
    want = reference(x[None])[0]
    for name, wrong in (("A_log", -30.0), ("dt_bias", 3.0), ("conv_weight", 1.0), ("norm.weight", 1.0)):
        layer = converted(reference)
        layer.get_parameter(name).fill_(wrong)
        assert (layer(x, None, Packed([60])) - want).abs().max() > 100 * LAYER_TOLERANCE, name
    layer = converted(reference)
    split = [layer(part, None, Packed([30])) for part in x.split(30)]
    assert (torch.cat(split) - want).abs().max() > 100 * LAYER_TOLERANCE, "the state is forgotten"


def test_layer_gradients_equal_transformers(reference: Qwen3NextGatedDeltaNet) -> None:
    """Two packed sequences have the gradients of each alone."""
    layer, first, second = converted(reference), hidden(70), hidden(9, seed=2)
    layer(torch.cat((first, second)), None, Packed([70, 9])).square().sum().backward()
    reference.zero_grad()
    (reference(first[None]).square().sum() + reference(second[None]).square().sum()).backward()
    pairs = [
        (layer.A_log, reference.A_log),
        (layer.dt_bias, reference.dt_bias),
        (layer.norm.weight, reference.norm.weight),
        (layer.o_proj.weight, reference.out_proj.weight),
    ]
    grads = [(a.grad, b.grad) for a, b in pairs] + [(layer.conv_weight.grad, reference.conv1d.weight.grad[:, 0])]
    for got, want in grads:
        assert want.abs().max() > 1
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@torch.no_grad()
def test_batch_equals_each_alone(reference: Qwen3NextGatedDeltaNet) -> None:
    layer = converted(reference)
    sequences = [hidden(length, seed=length) for length in (30, 7, 45)]
    steps = [[20, 0, 1], [1, 3, 1], [1, 1, 40], [1, 1, 1], [7, 1, 1], [0, 1, 1]]
    assert [sum(counts) for counts in zip(*steps, strict=True)] == [30, 7, 45]
    for x, got in zip(sequences, run_paged(layer, sequences, steps), strict=True):
        assert (got - layer(x, None, Packed([len(x)]))).abs().max() <= TOLERANCE


def test_state_size_is_constant(reference: Qwen3NextGatedDeltaNet) -> None:
    layout = converted(reference).layout
    channels = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM
    want = 4 * (3 * channels + VALUE_HEADS * KEY_DIM * VALUE_DIM)
    for length in (16, 1024, 131_072):
        assert KVCache([layout], -(-length // 16), 16, slots=1, max_length=length).nbytes == want
    assert KVCache([layout] * 3, 1, 16, slots=4).nbytes == 12 * want


def test_one_chunk_and_many_are_both_used() -> None:
    assert max(LENGTHS) > 3 * delta_reference.CHUNK > 64
