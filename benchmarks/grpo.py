"""Reinforcement learning beside TRL's: one whole step of GRPO on the default model, the same prompts and lengths.

    python benchmarks/grpo.py [--rounds 5] [--json FILE]

A step: 8 answers to each of 8 problems at temperature 1, their rewards, loss, backward, clipping, AdamW. Both train the
same adapter (rank 16 on all linears). Ours is wired as `deepseek-r1 train` wires it, over the frozen 4-bit file; the
other is trl.GRPOTrainer with PEFT and transformers' own generation in bf16, the model's weights dequantised. An end
token ends no answer on either side: all have 64 tokens. Neither has a KL term or an entropy bonus.
Each runs in a process of its own and waits while the other works; rounds alternate. Reported: seconds of a step
(median), theirs over ours, and each process's peak memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import pairs
from pairs import ALPHA, LEAVES, RANK

PROMPTS, GROUP, ANSWER_TOKENS = 8, 8, 64
AT_ONCE = 8  # answers to one backward pass of theirs, its default: 16 take more memory, and no less time
RATE, DECAY, CLIP_NORM, CLIP_LOW, CLIP_HIGH = 1e-4, 0.01, 1.0, 0.2, 0.28


def variety(text: str) -> float:
    """What an answer earns on both sides: cheap, and hardly ever the same for a whole group."""
    return float(len(set(text)))


def still_curriculum() -> Any:
    """The problems of both sides: levels that don't follow what either side earns."""
    from deepseek_r1.train.curriculum import Curriculum

    class Still(Curriculum):
        def note(self, rates: Mapping[str, float]) -> None:
            pass

    return Still((), 0)


def run_ours(folder: str, steps: int) -> None:
    from deepseek_r1.config.train import TrainConfig
    from deepseek_r1.data.tasks.problem import Problem
    from deepseek_r1.train.grpo import Grpo
    from deepseek_r1.train.rollout import EngineSampler
    from deepseek_r1.train.run import prepare

    def reward(problem: Problem, text: str, token_count: int, finished: bool) -> float:
        return variety(text)

    config = TrainConfig(
        method="grpo",
        out=f"{folder}/ours",
        steps=steps,
        prompts=PROMPTS,
        group=GROUP,
        answer_tokens=ANSWER_TOKENS,
        most_rounds=1,  # TRL asks no others either for a group that agrees
        entropy_weight=0.0,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        lora_targets=("all-linear",),
        lora_r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        lr=RATE,
        weight_decay=DECAY,
        clip_norm=CLIP_NORM,
        schedule="constant",
    )
    run = prepare(config, reward=reward)
    objective = run.loop.objective
    assert isinstance(objective, Grpo) and isinstance(objective.sampler, EngineSampler)
    objective.curriculum = still_curriculum()
    objective.sampler.engine.set_vocabulary(objective.tokenizer.token_bytes, ())  # no token ends an answer
    for _, line in zip(pairs.turns(), run.train(), strict=False):
        assert line["answer_tokens"] == ANSWER_TOKENS and line["truncated"] == 1, line


def run_theirs(folder: str, steps: int) -> None:
    import peft
    import transformers
    import trl
    from datasets import Dataset

    transformers.logging.set_verbosity_error()
    turns = pairs.turns()

    class InTurns(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            next(turns)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not next(turns, False)

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert [len(ids) for ids in completion_ids] == [ANSWER_TOKENS] * (PROMPTS * GROUP)
        return [variety(message["content"]) for (message,) in completions]

    settings = trl.GRPOConfig(
        output_dir=f"{folder}/theirs",
        model_init_kwargs={"dtype": "bfloat16"},
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=False,
        per_device_train_batch_size=AT_ONCE,
        gradient_accumulation_steps=PROMPTS * GROUP // AT_ONCE,
        num_generations=GROUP,
        max_completion_length=ANSWER_TOKENS,
        generation_kwargs={"eos_token_id": None},
        temperature=1.0,
        num_iterations=1,
        loss_type="dapo",
        beta=0.0,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        disable_dropout=True,
        learning_rate=RATE,
        weight_decay=DECAY,
        max_grad_norm=CLIP_NORM,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        max_steps=steps,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = trl.GRPOTrainer(
        folder,
        reward,
        settings,
        Dataset.from_list([{"prompt": prompt} for prompt in conversations(steps)]),
        peft_config=peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=LEAVES, lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        callbacks=[InTurns()],
    )
    trainer.eos_token_ids = [-1]  # no token ends an answer: it cuts answers by these after they are generated
    trainer.train()


def conversations(steps: int) -> Iterator[list[dict[str, str]]]:
    """What the steps of ours ask, in that order."""
    curriculum = still_curriculum()
    for step in range(steps):
        for problem in curriculum.draw(step, 0, PROMPTS):
            yield [{"role": "user", "content": problem.question}]


def main() -> int:
    options = pairs.parser(__doc__, "grpo.json").parse_args()
    if options.serve:
        import deepseek_r1  # noqa: F401  before torch: it sets how long OpenMP threads spin

        (run_ours if options.serve == "ours" else run_theirs)(options.model, options.rounds + 1)
        return 0
    from transformers import AutoTokenizer

    from deepseek_r1.models.locate import locate_model

    path = locate_model("default")
    with tempfile.TemporaryDirectory() as folder:
        pairs.save_bf16(folder)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        rounds = pairs.measure(folder, options.rounds, lambda seconds: {"seconds": seconds})
    pairs.show(rounds, "seconds", "s a step", smaller_is_better=True)
    fields = {"rounds": rounds, "prompts": PROMPTS, "group": GROUP, "answer_tokens": ANSWER_TOKENS}
    pairs.save_report(options.json, ("torch", "transformers", "peft", "trl"), fields)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
