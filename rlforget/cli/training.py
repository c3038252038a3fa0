"""`train`, `sequence`, `refresh`: fine-tunes, one or several in a row, and the short one that repairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlforget.cli import models, output
from rlforget.cli.options import Device, DryRun, Evaluate, Force, Json, Model, OutFolder, Samples, Seed, misused

if TYPE_CHECKING:
    from rlforget.domains import Score
    from rlforget.training import SequenceConfig, StageConfig
    from rlforget.training.needs import Needs

Config = Annotated[Path, typer.Argument(help="A YAML file.", metavar="CONFIG")]


def train(
    config: Config,
    out: OutFolder,
    stage: Annotated[
        str | None, typer.Option(help="Name or domain of the stage to run, where the file has several.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run one stage of a YAML file and write the tuned model as a checkpoint folder."""
    from rlforget.training import load_config, replay, train_stage
    from rlforget.training.loading import load_model
    from rlforget.training.naming import domain_named
    from rlforget.training.sequence import evaluate_domain
    from rlforget.weights.atomic import check_new_folder

    settings = load_config(config)
    chosen = _only_stage(settings, stage)
    domain = domain_named(settings, chosen.domain)
    check_new_folder(out, force=force)
    if dry_run:
        _show_plan(out, [chosen], as_json=as_json)
        return
    with output.step(f"loading {settings.model}"):
        model, tokenizer = load_model(settings)
        if settings.continue_from is not None:
            replay(model, Path(settings.continue_from))
    with output.step(f"evaluating {domain.name}"):
        before = {domain.name: evaluate_domain(model, tokenizer, domain, settings.evaluation)}
    result = train_stage(model, tokenizer, chosen, seed=settings.seed, domain=domain)
    with output.step(f"evaluating {domain.name}"):
        after = {domain.name: evaluate_domain(model, tokenizer, domain, settings.evaluation)}
    with output.step(f"writing {out}"):
        models.save(model, tokenizer, out, like=None, force=force)
    _show_result(result, out, before, after, as_json=as_json)


def sequence(
    config: Config,
    out: OutFolder,
    resume: Annotated[bool, typer.Option(help="Go on with an unfinished run, or refuse to.")] = True,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Two steps of every stage on a miniature model and data, to see that it runs."),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the stages of a YAML file one after another; kill it at any time and run it again to go on."""
    from rlforget.training import load_config, run_sequence
    from rlforget.training.needs import needs_of
    from rlforget.training.plan import Plan
    from rlforget.training.smoke import smoke_test_of

    settings = load_config(config)
    if smoke:
        settings = smoke_test_of(settings)
    plan = Plan(settings)
    if dry_run:
        _show_plan(out, settings.stages, as_json=as_json, needs=needs_of(plan))
        return
    result = run_sequence(settings, out, resume=resume)
    if as_json:
        stages = [
            {
                "name": stage.name,
                "folder": stage.folder.path,
                "steps": stage.result.steps if stage.result else 0,
                "rewards": {name: score.mean for name, score in stage.scores.items()},
            }
            for stage in result.stages
        ]
        output.json_object({"out": out, "stages": stages})
    else:
        output.line(result.table())
        output.written(out, dry_run=False)


def refresh(
    model: Model,
    domain: Annotated[str, typer.Option(help="The earlier domain to repair.")],
    out: OutFolder,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = 10,
    method: Annotated[Literal["grpo", "sft"], typer.Option(help="How to train.")] = "grpo",
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.", min=0.0)] = 1e-3,
    prompts: Annotated[int, typer.Option(help="Different prompts a step.", min=1)] = 16,
    protect: Annotated[list[str] | None, typer.Option(help="A domain to spare; may be repeated.")] = None,
    protection: Annotated[
        Literal["project", "fisher", "surgery"],
        typer.Option(
            help="How to spare: take off each step what lies in the span of those domains' gradients, shorten it "
            "where their Fishers are large, or take off each gradient, tensor by tensor, what points against theirs."
        ),
    ] = "project",
    seed: Seed = 0,
    evaluate: Evaluate = False,
    samples: Samples = 256,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Repair an earlier domain with a short fine-tune, and write the model as a new checkpoint folder."""
    from rlforget import domains
    from rlforget.training import StageConfig
    from rlforget.training import refresh as tune
    from rlforget.weights import open_weights
    from rlforget.weights.atomic import check_new_folder

    chosen, spared = domains.get(domain), [domains.get(one) for one in protect or []]
    check_new_folder(out, force=force)
    if dry_run:
        open_weights(models.folder_of(model))
        planned = StageConfig(domain=domain, method=method, steps=steps, learning_rate=learning_rate, prompts=prompts)
        _show_plan(out, [planned], as_json=as_json)
        return
    loaded = models.load(model, device)
    shown = [chosen, *spared] if evaluate else []
    before = models.rewards(loaded, shown, samples=samples, seed=seed)
    result = tune(
        loaded.model,
        loaded.tokenizer,
        chosen,
        steps=steps,
        method=method,
        learning_rate=learning_rate,
        prompts=prompts,
        protect=spared,
        protection=protection,
        protect_samples=samples,
        seed=seed,
    )
    after = models.rewards(loaded, shown, samples=samples, seed=seed)
    with output.step(f"writing {out}"):
        models.save(loaded.model, loaded.tokenizer, out, like=loaded.folder, force=force)
    _show_result(result, out, before, after, as_json=as_json)


def _only_stage(settings: SequenceConfig, wanted: str | None) -> StageConfig:
    """Return the stage that is asked for, or the only one.

    Raises:
        typer.BadParameter: There are several, and none is named.
        UnknownNameError: There is no stage of that name.
    """
    from rlforget.errors import UnknownNameError

    names = [stage.name or stage.domain for stage in settings.stages]
    if wanted is None and len(names) > 1:
        raise misused("--stage", found=f"the stages {', '.join(names)} in the file", fix="Choose one.")
    if wanted is not None and wanted not in names:
        raise UnknownNameError(
            f"stage {wanted!r}", expected=f"one of {', '.join(names)}", found=repr(wanted), fix="Check the spelling."
        )
    return settings.stages[0 if wanted is None else names.index(wanted)]


def _show_plan(out: Path, stages: list[StageConfig], *, as_json: bool, needs: Needs | None = None) -> None:
    if as_json:
        found = {} if needs is None else {"needs": needs.to_dict()}
        output.json_object({"stages": [stage.model_dump() for stage in stages], "out": None, **found})
        return
    rows = [
        (stage.name or stage.domain, stage.domain, stage.method, str(stage.steps), f"{stage.learning_rate:g}")
        for stage in stages
    ]
    output.table(("stage", "domain", "method", "steps", "learning rate"), rows)
    if needs is not None:
        _show_needs(needs)
    output.written(out, dry_run=True)


def _show_needs(needs: Needs) -> None:
    """Show the memory of each stage on one device, and the disk."""
    output.line(f"{needs.parameters / 1e9:.3g} billion parameters, by {needs.shape}; {needs.devices} process(es)")
    columns = ("stage", "weights", "gradients and AdamW", "activations", "logits", "sampling", "a device, at least")
    rows = [
        (
            stage.name,
            *(
                f"{size / 1e9:.3g} GB"
                for size in (
                    stage.weights,
                    stage.optimizer,
                    stage.activations,
                    stage.logits,
                    stage.sampling,
                    stage.total,
                )
            ),
        )
        for stage in needs.stages
    ]
    output.table(columns, rows)
    output.line(f"evaluation: {needs.evaluation / 1e9:.3g} GB a device, at least")
    output.line(f"disk: {needs.disk / 1e9:.3g} GB at most, for deltas and one stage's checkpoints")


def _show_result(result: Any, out: Path, before: dict[str, Score], after: dict[str, Score], *, as_json: bool) -> None:
    if as_json:
        stage = {"domain": result.domain, "method": result.method, "steps": result.steps, "seconds": result.seconds}
        output.json_object({**stage, "rewards": models.rewards_json(before, after), "out": out})
        return
    if before:
        models.show_rewards(before, after)
    output.line(f"{result.steps} steps of {result.method} on {result.domain} in {result.seconds:.0f} s")
    output.written(out, dry_run=False)
