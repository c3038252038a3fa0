"""Stages one after another: each is saved as a delta to its parent, and every domain is evaluated after each."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlforget import domains
from rlforget.delta import apply, diff, revert
from rlforget.domains import Domain, Score
from rlforget.training.checkpoints import Checkpoints
from rlforget.training.config import EvaluationConfig, SequenceConfig, StageConfig
from rlforget.training.live import replay, tensors, weights_digest
from rlforget.training.loading import load_model
from rlforget.training.log import JsonLinesLog, Log, silent
from rlforget.training.plan import BASE, Plan, changed
from rlforget.training.progress import Progress, choose
from rlforget.training.run_folder import RunFolder, StageFolder
from rlforget.training.stage import StageResult, train_stage
from rlforget.training.world import join, world_size
from rlforget.training.yaml_file import load_config
from rlforget.weights.ranks import from_first, is_first


@dataclass(frozen=True)
class FinishedStage:
    """One stage of a sequence, or the base it began with.

    Attributes:
        name: Its name; `base` for the base.
        parent: The stage it started from; None for the base.
        folder: What is on disk; `folder.delta()` is the change to its parent.
        config: Its configuration; None for the base.
        result: What it did; None for the base.
        scores: The score of every evaluated domain after it, by the domain's name.
    """

    name: str
    parent: str | None
    folder: StageFolder
    config: StageConfig | None
    result: StageResult | None
    scores: dict[str, Score]


@dataclass(frozen=True)
class SequenceResult:
    """A sequence that has run.

    Attributes:
        output: Its folder.
        stages: The base and every stage, in order.
        model: The live model after the last stage.
        tokenizer: Its tokenizer.
    """

    output: Path
    stages: tuple[FinishedStage, ...]
    model: Any
    tokenizer: Any

    def table(self) -> str:
        """Return every domain's mean reward after every stage as text, a line a domain."""
        names = [stage.name for stage in self.stages]
        lines = [f"{'domain':12s}" + "".join(f"{name[:11]:>12s}" for name in names)]
        for domain in self.stages[0].scores:
            lines.append(f"{domain[:12]:12s}" + "".join(f"{s.scores[domain].mean:12.3f}" for s in self.stages))
        return "\n".join(lines)


def run_sequence(
    config: SequenceConfig | str | Path, output: str | Path, *, resume: bool = True, progress: bool | Progress = True
) -> SequenceResult:
    """Run the stages of `config` that are not finished in `output` yet.

    A process may be killed at any time: a finished stage appears in `output` by one rename, and of an unfinished one
    the trainer's checkpoints are kept. A resumed run replays the finished stages' deltas on the base, goes on from the
    last checkpoint, and ends with the same bits as a run that was never interrupted.

    Under `accelerate launch` or `torchrun` each process trains on its share of every step, all with the whole model;
    the first one writes, into a folder that all can read.

    Args:
        config: The configuration, or the path of its YAML file.
        output: The run's folder.
        resume: Go on with a run that is there; otherwise that is an error.
        progress: True shows bars on a terminal and lines elsewhere.

    Raises:
        ConfigError: The configuration of a finished stage was changed, or it cannot be met.
        WrongBaseError: The model is not the one that the run began with.
        OutputError: `output` cannot be written, is in use, or is not a run's folder.
        RlforgetError: Whatever `train_stage` raises.
    """
    chosen = config if isinstance(config, SequenceConfig) else load_config(config)
    join()
    run = RunFolder(Path(output))
    plan = Plan(chosen)
    with ExitStack() as held:
        from_first(lambda: held.enter_context(run.opened(resume=resume)))
        finished = from_first(run.finished)
        plan.check_unchanged(finished)
        log = held.enter_context(JsonLinesLog(run.log_path)) if is_first() else silent
        log("run", config=chosen.model_dump(), finished=[stage.name for stage in finished])
        result = _Runner(plan, run, log, choose(progress if is_first() else False)).run(finished)
        log("end")
    return result


class _Runner:
    """Runs a plan."""

    def __init__(self, plan: Plan, run: RunFolder, log: Log, progress: Progress) -> None:
        self._plan, self._run, self._log, self._progress = plan, run, log, progress
        self._done: list[StageFolder] = []
        self._here = 0  # the stage whose weights the live model has
        self._model, self._tokenizer = load_model(plan.config)
        if plan.config.continue_from is not None:
            replay(self._model, Path(plan.config.continue_from))

    def run(self, finished: list[StageFolder]) -> SequenceResult:
        """Replay the finished stages and run the others."""
        self._done = list(finished)
        if finished:
            self._check_base(finished[0])
        else:
            self._done.append(self._evaluate_base())
        last = len(self._plan.names)
        for index in range(len(self._done), last + 1):
            self._move_to(self._plan.parents[index - 1])
            self._done.append(self._run_stage(index))
            self._here = index
        self._move_to(last)
        stages = tuple(_finished_stage(stage) for stage in self._done)
        return SequenceResult(self._run.path, stages, self._model, self._tokenizer)

    def _move_to(self, index: int) -> None:
        """Bring the live model from the stage it is at to stage `index`, over the stage that both come from."""
        here, there = self._plan.line(self._here), self._plan.line(index)
        for stage in reversed([stage for stage in here if stage not in there]):
            revert(self._model, self._done[stage].delta())
        for stage in [stage for stage in there if stage not in here]:
            apply(self._model, self._done[stage].delta())
        self._here = index

    def _evaluate_base(self) -> StageFolder:
        record = {
            "settings": self._plan.settings(),
            "continue_from": self._plan.continue_from(),
            "fingerprint": weights_digest(self._model),
            "scores": self._scores(BASE),
        }
        return from_first(lambda: self._run.write(0, BASE, record, None))

    def _check_base(self, base: StageFolder) -> None:
        found = weights_digest(self._model)
        if found != base.record["fingerprint"]:
            raise changed(base, "model", f"weights {base.record['fingerprint']}", f"weights {found}")

    def _run_stage(self, index: int) -> StageFolder:
        plan, name = self._plan, self._plan.names[index - 1]
        config, domain = plan.config.stages[index - 1], plan.stage_domains[index - 1]
        self._log("stage", stage=name, config=config.model_dump())
        before = tensors(self._model, copy=True) if is_first() else {}
        factors = self._run.adapter_draft() if config.lora is not None else None
        result = train_stage(
            self._model,
            self._tokenizer,
            config.model_copy(update={"name": name}),
            seed=plan.stage_seed(index),
            domain=domain,
            log=self._log,
            progress=self._progress,
            checkpoints=self._checkpoints(index),
            adapter_out=factors,
        )
        record = {
            "parent": [BASE, *plan.names][plan.parents[index - 1]],
            "config": config.model_dump(),
            "result": asdict(result),
            "scores": self._scores(name),
        }
        written = from_first(
            lambda: self._run.write(index, name, record, diff(before, tensors(self._model, copy=False)), factors)
        )
        self._log("finished", stage=name, steps=result.steps, seconds=round(result.seconds, 3))
        return written

    def _checkpoints(self, index: int) -> Checkpoints | None:
        every, config = self._plan.config.save_every, self._plan.config.stages[index - 1]
        if every is None or every >= config.steps:
            return None
        plan = {
            "config": config.model_dump(),
            "seed": self._plan.stage_seed(index),
            "weights": weights_digest(self._model),
            "processes": world_size(),
        }
        folder = self._run.unfinished(index, self._plan.names[index - 1])
        return from_first(lambda: Checkpoints(folder, every, plan))

    def _scores(self, name: str) -> dict[str, dict[str, float]]:
        settings, wanted = self._plan.config.evaluation, self._plan.evaluated
        scores: dict[str, dict[str, float]] = {}
        self._progress.start(f"{name}: evaluation", len(wanted))
        try:
            for done, domain in enumerate(wanted, start=1):
                score = evaluate_domain(self._model, self._tokenizer, domain, settings)
                scores[domain.name] = asdict(score)
                self._log("score", stage=name, domain=domain.name, **asdict(score))
                self._progress.advance(done, {domain.name: score.mean})
        finally:
            self._progress.stop()
        return scores


def evaluate_domain(model: Any, tokenizer: Any, domain: Domain, settings: EvaluationConfig) -> Score:
    """Evaluate one domain as a sequence does."""
    return domains.evaluate(
        model,
        tokenizer,
        domain,
        count=settings.count,
        seed=settings.seed,
        greedy=settings.greedy,
        batch_size=settings.batch_size,
    )


def _finished_stage(stage: StageFolder) -> FinishedStage:
    record = stage.record
    config = StageConfig.model_validate(record["config"]) if "config" in record else None
    result = None
    if "result" in record:
        values = record["result"]
        values |= {"rewards": tuple(values["rewards"]), "losses": tuple(values["losses"])}
        result = StageResult(**values)
    scores = {domain: Score(**score) for domain, score in record["scores"].items()}
    return FinishedStage(stage.name, record.get("parent"), stage, config, result, scores)
