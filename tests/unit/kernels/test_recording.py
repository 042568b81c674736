"""Recorded steps: replays follow their inputs, share memory safely, and refuse what torch computed itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek_r1.kernels import native, ops
from deepseek_r1.kernels.recording import Arena, Recording, current

WEIGHT = torch.randn(48, 48, generator=torch.Generator().manual_seed(0))


def layer(x: Tensor, weight: ops.PackedWeight, norm: Tensor) -> tuple[Tensor, ...]:
    inner = ops.rms_norm(x, norm, 1e-6)
    gate, up = ops.linear(inner, weight).split(24, dim=-1)
    return ops.add(x, ops.linear(inner, weight)), ops.gated("silu", gate, up)


@torch.inference_mode()
def test_a_replay_gives_what_the_call_would_for_the_inputs_now() -> None:
    weight, norm = ops.PackedWeight(WEIGHT), torch.rand(48)
    arena = Arena()
    recordings = []
    for rows in (1, 3, 8):
        x = torch.randn(rows, 48)
        recording = Recording(native.library, arena)
        first = [t.clone() for t in recording.make(lambda x=x: layer(x, weight, norm))]
        assert recording.foreign is None
        assert all(map(torch.equal, first, layer(x, weight, norm)))
        recordings.append((recording, x))
    used = arena.nbytes
    for _ in range(3):
        for recording, x in recordings:  # they share the arena: each replay writes over what another left
            x.copy_(torch.randn(x.shape))
            for got, want in zip(recording.replay(), layer(x, weight, norm), strict=True):
                assert torch.equal(got, want) and got.shape == want.shape
    assert arena.nbytes == used, "replays allocate nothing"


@torch.inference_mode()
def test_memory_is_used_again_within_a_recording_and_among_recordings() -> None:
    weight, norm = ops.PackedWeight(WEIGHT), torch.rand(48)
    arena = Arena()

    def deep(x: Tensor) -> tuple[Tensor, ...]:
        for _ in range(50):
            x = layer(x, weight, norm)[0]
        return (x,)

    x = torch.randn(4, 48)
    recording = Recording(native.library, arena)
    (got,) = recording.make(lambda: deep(x))
    assert torch.equal(got, deep(x)[0])
    del got
    blocks = arena.nbytes
    assert blocks <= 12 * 4096, "fifty layers need no more than one"
    again = Recording(native.library, arena)
    again.make(lambda: deep(x))
    assert arena.nbytes == blocks


@torch.inference_mode()
@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda x: x * 2, "aten::mul"),
        (lambda x: x.to(torch.bfloat16), "aten::"),
        (lambda x: x.t().reshape(-1, 48), "aten::"),
        (lambda x: x.add_(1), "aten::add_"),
        (lambda x: torch.zeros(1, 48), "aten::zeros"),
    ],
)
def test_what_torch_computed_makes_a_recording_unusable(compute: object, name: str) -> None:
    norm = torch.rand(48)
    recording = Recording(native.library, Arena())

    def call() -> tuple[Tensor, ...]:
        return (ops.rms_norm(compute(torch_input).float().contiguous(), norm, 1e-6),)  # type: ignore[operator]

    torch_input = torch.randn(3, 48)
    recording.make(call)
    assert recording.foreign is not None and recording.foreign.startswith(name)


@torch.inference_mode()
def test_views_are_no_computation() -> None:
    norm = torch.rand(12)
    x = torch.randn(3, 48)
    recording = Recording(native.library, Arena())

    def call() -> tuple[Tensor, ...]:
        heads = x.view(3, 4, 12).to(torch.float32)
        return (ops.rms_norm(heads[:, 1:3], norm, 1e-6),)

    recording.make(call)
    assert recording.foreign is None


@torch.inference_mode()
def test_a_failed_recording_leaves_nothing_behind() -> None:
    recording = Recording(native.library, Arena())

    def call() -> tuple[Tensor, ...]:
        raise KeyError("inside")

    with pytest.raises(KeyError):
        recording.make(call)
    assert current() is None
    after = Recording(native.library, Arena())
    x, norm = torch.ones(2, 8), torch.ones(8)
    after.make(lambda: (ops.rms_norm(x, norm, 1e-6),))
    assert after.foreign is None
