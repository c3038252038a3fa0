"""One stage: a fine-tune of a live model in one domain, by TRL."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget import domains
from rlforget.domains import Domain
from rlforget.errors import MissingExtraError, missing_extra
from rlforget.training.arguments import grpo_arguments, sft_arguments
from rlforget.training.borrow import borrowed, seeded
from rlforget.training.checkpoints import Checkpoint, Checkpoints, completing
from rlforget.training.config import StageConfig
from rlforget.training.data import completion_rows, prompt_rows, reward_function
from rlforget.training.log import Log, silent
from rlforget.training.lora import adapter
from rlforget.training.progress import Progress, choose
from rlforget.training.quiet import quiet
from rlforget.training.watch import Course, Watch, as_callback
from rlforget.weights.ranks import from_first

_MEASURE_SEED = 1_000_003  # prompts of a measurement are not those that the stage trains on


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        name: The stage's name.
        domain: Its domain's name.
        method: `grpo` or `sft`.
        steps: Optimizer steps taken.
        seconds: Wall time, without the import of the trainer.
        stopped: Whether `stop_at_reward` ended it before its last step.
        rewards: Mean sampled training reward: with GRPO of every step, with SFT of every try of `stop_at_reward`.
        losses: Loss of every step.
    """

    name: str
    domain: str
    method: str
    steps: int
    seconds: float
    stopped: bool
    rewards: tuple[float, ...]
    losses: tuple[float, ...]


def train_stage(
    model: Any,
    tokenizer: Any,
    stage: StageConfig,
    *,
    seed: int,
    domain: Domain | None = None,
    log: Log | None = None,
    progress: bool | Progress = True,
    callbacks: Sequence[Any] = (),
    checkpoints: Checkpoints | None = None,
    adapter_out: Path | None = None,
) -> StageResult:
    """Fine-tune `model` in place.

    Only the weights change: mode, configuration and random states are put back, and on an exception the weights stay
    as the last step left them. The same arguments give the same bits on the same machine and number of threads.

    Args:
        model: A transformers causal language model; it is trained on the device that it is on.
        tokenizer: Its tokenizer.
        stage: What to do.
        seed: Decides the examples and all draws.
        domain: The domain, where it is not to be made from `stage.domain`.
        log: Called with each event; `JsonLinesLog` is one.
        progress: True shows a bar on a terminal and lines elsewhere.
        callbacks: Further transformers `TrainerCallback`s, called in this order.
        checkpoints: Where the trainer saves, and goes on from what is there: `model` is then at the weights that the
            stage began with. The bits are those of a stage that was never interrupted, unless a callback measures anew
            where it goes on, as a guard does.
        adapter_out: With `stage.lora`, a folder that the adapter's factors are written to, for PEFT to load.

    Raises:
        RewardError: A reward raised or is no number in [0, 1].
        NonFiniteError: Training diverged.
        EmptyDomainError, UnknownNameError, DomainFileError: There is nothing to train on.
        MissingExtraError: TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise missing_extra("trl", "train")
    if stage.vllm is not None and importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            "key vllm", expected="the package vllm", found="none installed", fix="pip install vllm, or set it to null."
        )
    chosen = domains.get(stage.domain) if domain is None else domain
    name = stage.name or chosen.name
    shown, told = choose(progress), log or silent
    watch = Watch(name, stage, told, shown, lambda: _measure(model, tokenizer, chosen, stage, seed))
    saved = None if checkpoints is None else from_first(checkpoints.latest)
    if saved is not None:
        watch.go_on(saved.course, saved.seconds)
        told("resume", stage=name, step=saved.step)
    called = [as_callback(watch), *callbacks]
    arguments: dict[str, Any] = {}
    if checkpoints is not None:
        called.append(completing(checkpoints, watch))
        arguments = checkpoints.arguments()
    with quiet():
        import trl.trainer  # noqa: F401  # seconds of imports, which are not the stage's
    onward = "" if saved is None else f", on from step {saved.step}"
    shown.start(f"{name} ({stage.method}){onward}", stage.steps)
    watch.start()
    try:
        with (
            quiet(),
            borrowed(model),
            seeded(seed),
            adapter(model, stage.lora, adapter_out) as trained,
            _folder(checkpoints) as out,
        ):
            trainer = _trainer(trained, tokenizer, stage, chosen, seed, out, arguments)
            _train(trainer, called, watch, saved)
    finally:
        shown.stop()
    return _result(name, chosen, stage, watch.course, watch.seconds())


@contextmanager
def _folder(checkpoints: Checkpoints | None) -> Iterator[str]:
    """Give the trainer a folder: that of the checkpoints, or one that is gone afterwards."""
    if checkpoints is not None:
        yield str(checkpoints.path)
        return
    with tempfile.TemporaryDirectory(prefix="rlforget-") as folder:
        yield folder


def _train(trainer: Any, callbacks: Sequence[Any], watch: Watch, saved: Checkpoint | None) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=None if saved is None else str(saved.path))
    except RuntimeError as fault:
        if "probability tensor contains" not in str(fault):  # torch.multinomial, of logits that are not finite
            raise
        raise watch.diverged("logits", "inf or NaN") from fault


def _trainer(
    model: Any, tokenizer: Any, stage: StageConfig, domain: Domain, seed: int, folder: str, saving: Mapping[str, Any]
) -> Any:
    """Build TRL's trainer, of the stage's method."""
    examples = domain.examples(stage.steps * stage.prompts, seed=seed, split="train")
    common: dict[str, Any] = {"seed": seed, "device": model.device.type, "folder": folder, "saving": saving}
    if stage.method == "sft":
        from trl import SFTTrainer

        return SFTTrainer(
            model=model,
            args=sft_arguments(stage, **common),
            train_dataset=completion_rows(examples, tokenizer),
            processing_class=tokenizer,
        )
    from trl import GRPOTrainer

    length = stage.max_new_tokens or domain.max_new_tokens
    arguments = grpo_arguments(stage, **common, max_new_tokens=length)
    with _reference(model, stage, folder):
        return GRPOTrainer(
            model=model,
            reward_funcs=reward_function(domain, examples, tokenizer),
            args=arguments,
            train_dataset=prompt_rows(examples),
            processing_class=tokenizer,
        )


@contextmanager
def _reference(model: Any, stage: StageConfig, folder: str) -> Iterator[None]:
    """Let TRL find the stage's first weights where it looks for its reference model.

    It loads one from the place the configuration names, which is where the model once came from: the weights before
    all stages, and maybe a hub. With an adapter it needs none: it turns the adapter off.
    """
    if stage.beta == 0.0 or stage.lora is not None:
        yield
        return
    came_from = model.config._name_or_path
    from_first(lambda: model.save_pretrained(f"{folder}/reference"))
    model.config._name_or_path = f"{folder}/reference"
    try:
        yield
    finally:
        model.config._name_or_path = came_from


def _measure(model: Any, tokenizer: Any, domain: Domain, stage: StageConfig, seed: int) -> float:
    """Mean sampled reward now, on training prompts: the evaluation split is for reports alone."""
    count = stage.stop_window * stage.prompts
    return domains.evaluate(model, tokenizer, domain, count=count, seed=seed + _MEASURE_SEED, split="train").mean


def _result(name: str, domain: Domain, stage: StageConfig, course: Course, seconds: float) -> StageResult:
    return StageResult(
        name=name,
        domain=domain.name,
        method=stage.method,
        steps=len(course.losses),
        seconds=seconds,
        stopped=course.stopped,
        rewards=tuple(course.rewards),
        losses=tuple(course.losses),
    )
