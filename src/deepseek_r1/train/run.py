"""A whole training run: data and policy from a recipe, the loop, what is written down, and the result."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from deepseek_r1.config.precision import parse_precision
from deepseek_r1.config.train import TrainConfig
from deepseek_r1.core.environment import disk_free, machine_summary
from deepseek_r1.core.errors import CapacityError, ConfigError, DeepSeekError
from deepseek_r1.core.version import __version__
from deepseek_r1.data.load import Dataset, load_examples
from deepseek_r1.data.report import DataReport
from deepseek_r1.kernels import ops
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.packed_cache import load_packed
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.operate.runs.report import write_report
from deepseek_r1.operate.runs.write import RunWriter
from deepseek_r1.train.distill import Distilled
from deepseek_r1.train.grpo import Grpo
from deepseek_r1.train.loop import Loop, Objective
from deepseek_r1.train.policy import Policy, load_policy
from deepseek_r1.train.rewards import Reward, RewardFunction
from deepseek_r1.train.rollout import EngineSampler
from deepseek_r1.train.saved import SavedRuns
from deepseek_r1.train.supervised import Supervised

CHECKPOINTS, RESULT, RECIPE = "checkpoints", "result", "recipe.json"

_FREE_TO_CHANGE = ("out", "save_every", "keep", "most_bad_steps", "activation_checkpointing")
"""Settings that a resumed run may have otherwise: no weight depends on them."""

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that is ready to go on from where it is. Iterating trains; `result` is there once it has finished."""

    config: TrainConfig
    loop: Loop
    folder: Path
    resumed_at: int
    data_report: str
    _saved: SavedRuns = field(repr=False)
    _writer: RunWriter = field(repr=False)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.loop.step >= self.loop.steps

    def train(self, stop: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        """Train until the end or until `stop`, one figure per step; write result and report when all steps are done.

        Whatever ends it, the folder says so, and what was saved stays.
        """
        status: Literal["finished", "interrupted", "failed"] = "failed"
        try:
            for line in self.loop.run(self._saved, stop):
                self._writer.step(line)
                yield line
            if self.finished:
                self._save_result()
            status = "finished" if self.finished else "interrupted"
        except (KeyboardInterrupt, GeneratorExit):
            status = "interrupted"
            raise
        finally:
            try:
                self._writer.finish(status)
            except DeepSeekError as error:
                if status != "failed":
                    raise
                log.warning("%s", error)  # what ended the run is what it should end with
            finally:
                self._saved.close()
        if status == "finished":
            self._report()

    def _report(self) -> None:
        """Write the run's report; where that can't be, say so: the result is there."""
        try:
            write_report(self.folder)
        except (DeepSeekError, OSError) as error:
            log.warning("the run has finished, its report is not written: %s", error)

    def _save_result(self) -> None:
        folder = self.folder / RESULT
        try:
            self.loop.policy.save(folder)
        except OSError as error:
            raise _unwritten(folder, error) from None


def prepare(config: TrainConfig, *, reward: Reward | RewardFunction | None = None) -> Run:
    """Load what a run needs, and go on from its newest checkpoint where its folder has one.

    Raises `ConfigError` when the folder holds a run of other settings, and whatever is wrong with model or data.
    """
    folder = Path(config.out)
    model = locate_model(config.model)
    folder.mkdir(parents=True, exist_ok=True)
    saved = SavedRuns(folder / CHECKPOINTS, keep=config.keep)
    try:
        _refuse_other_settings(folder, config)
        policy = load_policy(config, model)
        writer = RunWriter(folder)
        objective, steps, digest, report = _objective(config, policy, model, writer, reward)
        loop = Loop(policy, objective, config, steps)
        loop.resume(saved)
        # Only now: what turned out to be a mistake must not bind the folder, or replace what it has.
        _write(folder / RECIPE, json.dumps(_binding(config) | _beneath(), indent=1) + "\n")
        if report is not None:
            _write(folder / "data.json", json.dumps(report.as_json(), indent=1) + "\n")
            _write(folder / "data.svg", report.as_svg())
        writer.begin(_about(config, model, steps, digest))
        writer.rewind(loop.step)
    except BaseException:
        saved.close()
        raise
    words = "" if report is None else report.as_text()
    return Run(config, loop, folder, loop.step, words, saved, writer)


def _objective(
    config: TrainConfig,
    policy: Policy,
    model: Path,
    writer: RunWriter,
    reward: Reward | RewardFunction | None,
) -> tuple[Objective, int, str, DataReport | None]:
    """What is learnt, in how many steps, the digest of its data, and the report on them where they are files."""
    tokenizer = load_tokenizer(model)
    if config.method == "grpo":
        assert config.steps is not None

        def note(step: int, rows: list[dict[str, Any]]) -> None:
            writer.rollouts([{"step": step, **row} for row in rows])

        sampler = EngineSampler(policy, tokenizer, config.answer_tokens)
        objective = Grpo(policy, sampler, tokenizer, config, note=note, reward=reward)
        families = ",".join(objective.curriculum.families)
        return objective, config.steps, hashlib.sha256(families.encode()).hexdigest(), None
    found = _load(config, tokenizer)
    if config.method == "distill":
        assert config.teacher is not None
        teacher = load_packed(locate_model(config.teacher), parse_precision("auto"))
        supervised: Supervised = Distilled(policy, teacher, found.examples, found.digest, config)
    else:
        supervised = Supervised(policy, found.examples, found.digest, config)
    return supervised, config.steps or supervised.steps(), found.digest, found.report


def report_data(config: TrainConfig) -> str:
    """What a run's data are, in words for a terminal. Raises what loading them raises."""
    return _load(config, load_tokenizer(locate_model(config.model))).report.as_text()


def _load(config: TrainConfig, tokenizer: Tokenizer) -> Dataset:
    return load_examples(
        config.data,
        tokenizer,
        max_length=config.max_length,
        train_on=config.train_on,  # type: ignore[arg-type]
        too_long=config.too_long,  # type: ignore[arg-type]
        drop_duplicates=config.drop_duplicates,
    )


def _binding(config: TrainConfig) -> dict[str, Any]:
    """The settings that a resumed run has to have like the run that it goes on with."""
    free = {name: value for name, value in config.to_dict().items() if name not in _FREE_TO_CHANGE}
    return free | {"path": ops.PATH}


def _beneath() -> dict[str, Any]:
    """What the last bits of gradients may depend on beside settings and path: a resumed run warns where it changed."""
    return {"torch": version("torch"), "threads": torch.get_num_threads()}


def _refuse_other_settings(folder: Path, config: TrainConfig) -> None:
    """Raises `ConfigError` for a folder whose run had other settings."""
    path = folder / RECIPE
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ConfigError(f"{path} is not what a run wrote", remedy="choose another out folder")
    for name, value in _binding(config).items():
        if before.get(name) != value:
            raise ConfigError(
                f"{folder} holds a run with {name}={before.get(name)!r}, not {value!r}",
                remedy="give its settings to go on with it, or choose another out folder",
            )
    for name, value in _beneath().items():
        if before.get(name, value) != value:
            log.warning(
                "%s was begun with %s %s and goes on with %s: its last bits may differ from those of one run",
                folder, name, before[name], value,
            )  # fmt: skip


def _about(config: TrainConfig, model: Path, steps: int, digest: str) -> dict[str, Any]:
    return {
        "kind": config.method,
        "recipe": config.to_dict(),
        "model": model.name,
        "data_digest": digest,
        "steps": steps,
        "machine": machine_summary(),
        "path": ops.PATH,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"deepseek_r1": __version__, "torch": version("torch")},
    }


def _write(path: Path, text: str) -> None:
    """Replace a small file in one rename. Raises `CapacityError` where the disk doesn't take it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise _unwritten(path, error, len(text.encode())) from None


def _unwritten(path: Path, error: OSError, needed: int | None = None) -> CapacityError:
    size = "" if needed is None else f"{needed} bytes are needed, "
    return CapacityError(
        f"{path}: can't be written: {error.strerror}: {size}{disk_free(path)} are free",
        remedy="free space, and start the run again: it goes on from its last checkpoint",
    )
