"""Saved runs: what is read is what was written, bit for bit; what can not be kept is refused before any writing."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.train.saved import CheckpointFolderError, SavedRuns, read_latest
from deepseek_r1.train.saved_content import Content, read_saved

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.uint8, torch.bool)


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for number, dtype in enumerate(DTYPES):
        for shape in ((), (0,), (3,), (2, 5), (2, 0, 3), (1, 1, 7)):
            values = torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator)
            tensors[f"t{number}.{'x'.join(map(str, shape))}"] = values.to(dtype)
    tensors["special"] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    tensors["transposed"] = torch.randn(4, 6, generator=generator).t()
    tensors["ünïcode \n"] = torch.tensor([2**63 - 1, -(2**63)])
    return tensors


def same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = some_tensors()
    with SavedRuns(tmp_path / "new" / "run") as runs:
        assert runs.latest() is None
        path = runs.save(42, tensors, {"loss": 0.1})
        saved = runs.latest()
    assert path == tmp_path / "new/run/step-00000042"
    assert saved is not None and saved.step == 42 and saved.state == {"loss": 0.1}
    assert saved.tensors.keys() == tensors.keys()
    assert all(same_bits(saved.tensors[name], tensor) for name, tensor in tensors.items())
    saved.tensors["t2.3"].add_(1)  # in memory of their own, and writable
    theirs = load_file(path / "tensors.safetensors")
    assert theirs.keys() == tensors.keys()
    assert all(same_bits(theirs[name], tensor) for name, tensor in tensors.items())
    again = read_latest(tmp_path / "new/run")
    assert again is not None and same_bits(again.tensors["t2.3"], tensors["t2.3"])


def test_parameters_and_nothing_at_all(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with SavedRuns(tmp_path) as runs:
        runs.save(0, {}, {})
        saved = runs.latest()
        assert saved is not None and (saved.step, saved.tensors, saved.state) == (0, {}, {})
        runs.save(1, {"w": weight}, {})
        saved = runs.latest()
        assert saved is not None and torch.equal(saved.tensors["w"], weight) and not saved.tensors["w"].requires_grad


exact = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(state=st.dictionaries(st.text(), exact, max_size=4))
@settings(max_examples=100, deadline=None)
def test_states_come_back_exactly(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("state")
    Content(7, {}, state).write(folder)
    back = read_saved(folder, 7).state
    assert repr(back) == repr(state), "types, order, and the sign of zero too"


def test_large_integers_and_all_digits_of_floats(tmp_path: Path) -> None:
    state = {"seed": 2**8000 + 1, "negative": -(2**200), "tenth": 0.1, "tiny": 5e-324, "zero": -0.0, "\ud800": "\udfff"}
    with SavedRuns(tmp_path) as runs:
        runs.save(1, {}, state)
        saved = runs.latest()
    assert saved is not None and repr(saved.state) == repr(state)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, r"state\.x is nan"), ([1.0, math.inf], r"state\.x\[1\] is inf"),
        ({"y": -math.inf}, r"state\.x\.y is -inf"),
        ((1, 2), "is a tuple"), ({1: 2}, "1 is no name"), (b"x", "is a bytes"), ({"s": {1}}, "is a set"),
        (torch.ones(1), "is a Tensor"), (2**9000, "more than 8192 bits"), (nested(101), "nested more than 100"),
    ],
)  # fmt: skip
def test_states_that_json_would_change_are_refused(value: Any, problem: str, tmp_path: Path) -> None:
    with SavedRuns(tmp_path) as runs:
        with pytest.raises(ConfigError, match=problem):
            runs.save(1, {}, {"x": value})
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_tensors_and_numbers_that_are_not_saved(tmp_path: Path) -> None:
    with SavedRuns(tmp_path) as runs:
        with pytest.raises(UnsupportedError, match=r"'w': torch\.complex64 is not saved \(save it as one of I64, F32"):
            runs.save(1, {"w": torch.zeros(1, dtype=torch.complex64)}, {})
        with pytest.raises(ConfigError, match="__metadata__"):
            runs.save(1, {"__metadata__": torch.zeros(1)}, {})
        for step in (-1, 1.0, True, 10**13):
            with pytest.raises(ConfigError, match="step must be"):
                runs.save(step, {}, {})  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    for keep in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="keep must be"):
            SavedRuns(tmp_path, keep)  # type: ignore[arg-type]


def test_a_state_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_r1.train.saved_content.MAX_STATE_BYTES", 20)
    with SavedRuns(tmp_path) as runs, pytest.raises(ConfigError, match="takes 21 bytes as JSON, at most 20"):
        runs.save(1, {}, {"x": "a" * 13})


def test_old_ones_go_and_the_last_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "step-1").mkdir()  # not a name that we give
    with SavedRuns(tmp_path, keep=2) as runs:
        for step in (5, 6, 70, 123_456_789):
            runs.save(step, {}, {"step": step})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "notes.txt", "step-1", "step-00000070", "step-123456789"}
    with SavedRuns(tmp_path, keep=1) as runs:
        runs.save(123_456_790, {}, {})
        assert {path.name for path in tmp_path.glob("step-*")} == {"step-1", "step-123456790"}


def test_the_same_step_can_be_saved_again_but_no_earlier_one(tmp_path: Path) -> None:
    with SavedRuns(tmp_path) as runs:
        runs.save(3, {"w": torch.zeros(2)}, {"try": 1})
        runs.save(3, {"w": torch.ones(3)}, {"try": 2})
        saved = runs.latest()
        assert saved is not None and saved.state == {"try": 2} and saved.tensors["w"].shape == (3,)
        with pytest.raises(CheckpointFolderError, match=r"holds step 3, later than step 2 \(resume from it"):
            runs.save(2, {}, {})
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "step-00000003"}


def test_after_a_damaged_one_the_run_goes_on_from_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SavedRuns(tmp_path) as runs:
        for step in (10, 20):
            runs.save(step, {"w": torch.full((4,), float(step))}, {})
    (tmp_path / "step-00000020/state.json").write_bytes(b"[]")
    logging.getLogger("deepseek_r1").propagate = True
    with SavedRuns(tmp_path) as runs, caplog.at_level(logging.WARNING, logger="deepseek_r1"):
        saved = runs.latest()
        assert saved is not None and saved.step == 10 and "step-00000020 is damaged" in caplog.text
        runs.save(15, {}, {})  # the damaged later one isn't in its way, and is removed
        assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000015"]
        saved = runs.latest()
        assert saved is not None and saved.step == 15


def test_a_closed_one_and_one_that_was_forgotten(tmp_path: Path) -> None:
    runs = SavedRuns(tmp_path)
    runs.save(1, {}, {})
    runs.close()
    runs.close()
    with pytest.raises(CheckpointFolderError, match="was closed"):
        runs.save(2, {}, {})
    forgotten = SavedRuns(tmp_path)
    del forgotten
    with SavedRuns(tmp_path):
        pass


def test_nothing_to_read(tmp_path: Path) -> None:
    assert read_latest(tmp_path) is None and read_latest(tmp_path / "none") is None
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointFolderError, match="can't be read: Not a directory"):
        read_latest(file)
    for folder in (file, file / "below"):
        with pytest.raises(CheckpointFolderError, match="can't be used"):
            SavedRuns(folder)


def test_the_files_are_plain(tmp_path: Path) -> None:
    """They can be read without this package."""
    with SavedRuns(tmp_path) as runs:
        path = runs.save(9, {"w": torch.ones(2)}, {"lr": 3e-4})
    assert json.loads((path / "state.json").read_text()) == {"lr": 3e-4}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 9 and manifest["files"]["state.json"]["bytes"] == 13
