"""The main job on one seed: train a sequence, see what changed and what was lost, try every repair."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlforget import delta as deltas
from rlforget import domains
from rlforget.delta import Delta
from rlforget.domains import miniature
from rlforget.experiments.damages import write_measured
from rlforget.experiments.measure import Rewards
from rlforget.experiments.repairs import Repair, Scene, norm, training_free
from rlforget.experiments.settings import EARLIER, LATER, SEQUENCE, TARGET, Settings
from rlforget.experiments.sft_and_rl import of_one_length, to_one_reward
from rlforget.recovery.judging import Judge, Scale
from rlforget.training import EvaluationConfig, Progress, SequenceConfig, StageConfig, run_sequence, train_stage

Echo = Callable[[str], None]


def main_job(seed: int, out: Path, settings: Settings, *, echo: Echo, progress: Progress) -> dict[str, Any]:
    """Run the demo on one seed, with the sequence and its deltas in the folder `out`.

    Returns:
        JSON: `seed`, `base_weights` (their fingerprint), `stages` (rewards of every domain, their standard errors over
        prompts, the weights' fingerprint, and the statistics of the delta), `overlaps` of the stages' deltas, `lost`
        (reward of each earlier domain after the last earlier stage, less at the end), `repairs`, `sft_and_rl`,
        `sft_and_rl_of_one_length` and `seconds`. Beside the sequence lie `damage.json` and `conflict.json`, see
        `write_measured`.
    """
    started = time.perf_counter()
    echo(f"seed {seed}: GRPO on {' → '.join(SEQUENCE)}")
    sequence = run_sequence(_sequence(settings, seed), out, progress=progress)
    stages = [stage.folder.delta() for stage in sequence.stages[1:]]
    rewards: list[Rewards] = [_means(stage.scores) for stage in sequence.stages]
    errors = [{name: score.stderr for name, score in stage.scores.items()} for stage in sequence.stages]
    model, tokenizer = miniature.load()
    split = len(EARLIER)
    for stage in stages[:split]:
        deltas.apply(model, stage)
    then = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    judge = _judge(tokenizer, settings)
    answers_then = judge.answers(model)
    for stage in stages[split:-1]:
        deltas.apply(model, stage)
    before_target = copy.deepcopy(model)
    deltas.apply(model, stages[-1])
    scene = Scene(
        model=model,
        tokenizer=tokenizer,
        delta=deltas.diff(then, model),
        own=stages[split - 1],
        judge=judge,
        scale=Scale(EARLIER, LATER, answers_then, judge.answers(model)),
        settings=settings,
        seed=seed,
    )
    echo(f"damage to {', '.join(EARLIER)}, and in how few directions it lies")
    write_measured(scene, out)
    repairs: list[Repair] = []
    for repair in training_free(scene, echo):
        echo(f"  {repair.label}: regained {repair.regained:.2f}, kept {repair.kept:.2f}")
        repairs.append(repair)
    echo(f"refresh: {settings.refresh_steps} GRPO steps on each of {', '.join(EARLIER)}")
    by_grpo = copy.deepcopy(model)
    repairs.append(_refreshed(scene, progress))
    echo(f"SFT and RL on {TARGET}: to one reward, and of one length")
    return {
        "seed": seed,
        "base_weights": sequence.stages[0].folder.record["fingerprint"],
        "stages": [
            {
                "name": stage.name,
                "rewards": after,
                "stderr": error,
                "weights": stage.folder.record["fingerprint"] if delta is None else delta.fingerprint_after,
                **({"delta": delta.stats().to_dict()} if delta else {}),
            }
            for stage, after, error, delta in zip(sequence.stages, rewards, errors, [None, *stages], strict=True)
        ],
        "overlaps": _overlaps(stages),
        "lost": {name: rewards[split][name] - rewards[-1][name] for name in EARLIER},
        "repairs": [repair.to_dict() for repair in repairs],
        "sft_and_rl": to_one_reward(before_target, tokenizer, settings, seed, progress),
        "sft_and_rl_of_one_length": of_one_length(before_target, by_grpo, tokenizer, settings, seed, progress),
        "seconds": time.perf_counter() - started,
    }


def _judge(tokenizer: Any, settings: Settings) -> Judge:
    """What asks the prompts that the sequence is evaluated on, with the same draws."""
    named = [domains.get(name) for name in SEQUENCE]
    count = settings.evaluation_prompts
    return Judge(tokenizer, {one: one.examples(count, seed=0, split="eval") for one in named})


def _sequence(settings: Settings, seed: int) -> SequenceConfig:
    return SequenceConfig(
        model="miniature",
        seed=seed,
        stages=[
            StageConfig(domain=name, method="grpo", steps=steps, learning_rate=rate)
            for name, steps, rate in zip(SEQUENCE, settings.steps, settings.learning_rates, strict=True)
        ],
        evaluation=EvaluationConfig(domains=list(SEQUENCE), count=settings.evaluation_prompts),
    )


def _means(scores: dict[str, domains.Score]) -> Rewards:
    return {name: score.mean for name, score in scores.items()}


def _overlaps(stages: list[Delta]) -> list[dict[str, Any]]:
    pairs = [(i, j) for j in range(len(stages)) for i in range(j)]
    return [
        {"first": SEQUENCE[i], "second": SEQUENCE[j], **deltas.overlap(stages[i], stages[j]).to_dict()}
        for i, j in pairs
    ]


def _refreshed(scene: Scene, progress: Progress) -> Repair:
    """A short fine-tune on each earlier domain; the last repair, since it changes the model for good."""
    now = {name: parameter.detach().clone() for name, parameter in scene.model.named_parameters()}
    for name in EARLIER:
        stage = StageConfig(
            domain=name,
            method="grpo",
            name=f"re-{name}",
            steps=scene.settings.refresh_steps,
            learning_rate=scene.settings.refresh_rate,
        )
        train_stage(scene.model, scene.tokenizer, stage, seed=scene.seed + 1, progress=progress)
    moved = sum(
        float((parameter.detach() - now[name]).double().square().sum())
        for name, parameter in scene.model.named_parameters()
    )
    return scene.judged("refresh", None, moved**0.5 / norm(scene.delta))
