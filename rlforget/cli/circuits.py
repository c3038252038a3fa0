"""`circuits find | compare | restore`: the heads a task needs, which of them a fine-tune broke, and their repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlforget.cli import models, output
from rlforget.cli.circuits_options import (
    NOTHING_TO_DO,
    Ablation,
    BatchSize,
    Domain,
    Method,
    Metric,
    Options,
    Pairs,
    Positions,
    Size,
    TaskFile,
    check_method,
    named_models,
    read_heads,
    read_options,
    read_positions,
    read_size,
    read_task,
)
from rlforget.cli.circuits_output import show_circuit, show_effects, show_judged
from rlforget.cli.options import Device, DryRun, Force, Json, Model, OutFolder, Samples, Seed, misused

if TYPE_CHECKING:
    from rlforget.circuits import Circuit, Task
    from rlforget.circuits.changed_weights import ChangedWeights
    from rlforget.circuits.comparison import Comparison
    from rlforget.circuits.restoration import RestorationEffect
    from rlforget.circuits.trajectory import Trajectory
    from rlforget.domains import Domain as RewardedDomain


def find(
    model: Model,
    domain: Domain = None,
    task: TaskFile = None,
    method: Method = "eap-ig",
    size: Size = None,
    metric: Metric = "log_prob_difference",
    ablation: Ablation = "resample",
    positions: Positions = "all",
    option: Options = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Also measure how faithful the circuit is, alone and over sizes.")
    ] = False,
    samples: Pairs = 64,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the circuit, by custom as NAME.json.", metavar="FILE")
    ] = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Find the attention heads that a task needs."""
    from rlforget.circuits import find as search
    from rlforget.weights.atomic import check_free

    wanted, options = read_size(size), read_options(option or [])
    setting = {"metric": metric, "ablation": ablation, "positions": read_positions(positions), "batch_size": batch_size}
    chosen = read_task(domain, task, samples, seed)
    check_method(method)
    if out is not None:
        check_free(out, force=force)
    loaded = models.load(model, device)
    with output.step(f"finding the circuit of {chosen.name} by {method}, {len(chosen)} pairs"):
        circuit = search(
            loaded.model,
            chosen,
            method,
            tokenizer=loaded.tokenizer,
            size=wanted,
            seed=seed,
            **setting,
            **options,
        )
    judged = _judged(loaded, chosen, circuit, setting) if judge else None
    if out is not None and not dry_run:
        _write_json(out, circuit.to_dict(), force=force)
    if as_json:
        known = {"task": chosen.name, "judged": judged, "out": None if dry_run else out}
        output.json_object({**circuit.to_dict(), **known})
        return
    show_circuit(circuit)
    if judged is not None:
        show_judged(judged)
    if out is not None:
        output.written(out, dry_run=dry_run)


def compare(
    base: Annotated[str, typer.Argument(help="The base: a checkpoint folder, or `miniature`.", metavar="BASE")],
    tuned: Annotated[
        list[str],
        typer.Argument(
            help="Models tuned from it, the one suspected of keeping less first; a name given twice has two runs.",
            metavar="NAME=MODEL...",
        ),
    ],
    domain: Domain = None,
    task: TaskFile = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="A checkpoint on the way to NAME, in order; may be repeated.", metavar="NAME=MODEL"),
    ] = None,
    replicate: Annotated[
        list[str] | None,
        typer.Option(help="A model that differs from the base by seed noise alone; may be repeated.", metavar="MODEL"),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also say which weights of the vulnerable heads changed.")
    ] = False,
    method: Method = "eap-ig",
    size: Annotated[
        str, typer.Option(help="Heads in each circuit: a share such as 0.25, or a count such as 12.")
    ] = "0.25",
    metric: Metric = "log_prob_difference",
    ablation: Ablation = "resample",
    positions: Positions = "all",
    option: Options = None,
    samples: Pairs = 64,
    batch_size: BatchSize = 32,
    draws: Annotated[int, typer.Option(help="Permutations of heads, and resamples of prompts.", min=1)] = 1000,
    completions: Annotated[int, typer.Option(help="Completions for a reward, or for a Fisher.", min=1)] = 256,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Save it, by custom as circuits.json, for `rlforget report`.", metavar="FILE"),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare the circuits of a base and its fine-tunes, beside chance and a ceiling."""
    from rlforget import domains
    from rlforget.circuits.comparison import compare_circuits
    from rlforget.circuits.record import record
    from rlforget.circuits.trajectory import trajectory_of_circuits
    from rlforget.weights.atomic import check_free

    runs, ways = named_models(tuned, "NAME=MODEL"), named_models(checkpoint or [], "--checkpoint")
    lacking = next((name for name in ways if len(runs.get(name, [])) != 1), None)
    if lacking is not None:
        raise misused(
            "--checkpoint", found=f"the name {lacking!r}", fix="Name a model that is given once as NAME=MODEL."
        )
    if weights and len(runs) < 2:
        raise misused(
            "--weights", found="one fine-tune", fix="Give two: a head is vulnerable in one and not in the other."
        )
    setting = {"metric": metric, "ablation": ablation, "positions": read_positions(positions), "batch_size": batch_size}
    wanted = {"size": read_size(size), **setting, **read_options(option or [])}
    chosen = read_task(domain, task, samples, seed)
    check_method(method)
    if out is not None:
        check_free(out, force=force)
    search = Search(chosen, method, wanted, seed, device)
    rewarded = domains.get(domain) if domain is not None and ways else None
    first = search.circuit(base)
    rewards = {"base": search.reward(rewarded, completions)}
    drawn: dict[str, Any] = {"permutations": draws, "bootstrap": draws, "seed": seed}
    found: dict[str, list[Circuit]] = {}
    trajectories: dict[str, Trajectory] = {}
    for name, models_of in runs.items():
        along, at = {}, dict(rewards)
        for model in ways.get(name, []):
            along[model], at[model] = search.circuit(model), search.reward(rewarded, completions)
        found[name] = [search.circuit(model) for model in models_of]
        if along:
            along[name], at[name] = found[name][0], search.reward(rewarded, completions)
            trajectories[name] = trajectory_of_circuits(first, along, rewards=at, **drawn)
    repeated = [search.circuit(model) for model in replicate or []]
    with output.step(f"comparing, {draws} draws of every control"):
        comparison = compare_circuits(first, found, replicates=repeated, **drawn)
    changed = _changed(comparison, runs, base, domain, completions, seed, device) if weights else {}
    whole = record(chosen.name, comparison, trajectories, changed)
    if out is not None and not dry_run:
        _write_json(out, whole, force=force)
    if as_json:
        output.json_object({**whole, "out": None if dry_run else out})
        return
    output.line(comparison.table())
    for name, trajectory in trajectories.items():
        output.line(f"\n{name}\n{trajectory.table()}")
    for name, one in changed.items():
        output.line(f"\n{name}\n{one.table()}")
    if weights and not changed:
        output.line("\nno head is vulnerable at a delta above 0: there are no weights to look into")
    if out is not None:
        output.written(out, dry_run=dry_run)


def restore(
    model: Model,
    base: Annotated[str, typer.Option(help="The checkpoint it was tuned from.", metavar="MODEL")],
    out: OutFolder,
    heads: Annotated[
        str | None, typer.Option(help="Heads as LAYER:HEAD, counted from 0, e.g. 0:1,2:3.", metavar="HEADS")
    ] = None,
    circuit: Annotated[
        Path | None, typer.Option(help="A circuit that `circuits find` saved: all of its heads.", metavar="FILE")
    ] = None,
    shared: Annotated[
        Literal["all", "any"],
        typer.Option(help="Put back what heads share, e.g. keys and values, when all of them are chosen, or any."),
    ] = "all",
    domain: Annotated[
        list[str] | None, typer.Option(help="Measure its reward before and after; may be repeated.", metavar="NAME")
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Random choices of as many heads to measure a domain with beside.", min=0)
    ] = 10,
    samples: Samples = 256,
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put chosen heads back from the base, and write the model as a new checkpoint folder."""
    from rlforget import domains
    from rlforget.circuits import restoration_effect
    from rlforget.circuits import restore as put_back
    from rlforget.weights.atomic import check_new_folder

    measured = [domains.get(name) for name in domain or []]
    chosen = read_heads(heads, circuit)
    check_new_folder(out, force=force)
    loaded, source = models.load(model, device), models.folder_of(base)
    effects: dict[str, RestorationEffect] = {}
    for one in measured:
        with output.step(f"measuring {one.name} with {len(chosen)} heads restored, and with {draws} random choices"):
            effects[one.name] = restoration_effect(
                loaded.model,
                source,
                chosen,
                one,
                tokenizer=loaded.tokenizer,
                draws=draws,
                shared=shared,
                samples=samples,
                seed=seed,
            )
    report = put_back(loaded.model, source, chosen, shared=shared).report
    if not report.written:
        output.note("nothing to do: these heads are the base's already")
        raise typer.Exit(NOTHING_TO_DO)
    if not dry_run:
        with output.step(f"writing {out}"):
            models.save(loaded.model, loaded.tokenizer, out, like=loaded.folder, force=force)
    if as_json:
        found = {name: effect.to_dict() for name, effect in effects.items()}
        output.json_object({**report.to_dict(), "effects": found, "out": None if dry_run else out})
        return
    if effects:
        show_effects(effects)
    count = f"{len(chosen)} head{'s' if len(chosen) > 1 else ''}"
    output.line(f"{count}: {report.written:,} of {report.coordinates:,} coordinates written")
    if report.left:
        kept = ", ".join(f"{layer}:{head}" for layer, head in report.left)
        output.line(f"what they share with heads not chosen stayed: {kept} (see --shared)")
    output.written(out, dry_run=dry_run)


class Search:
    """Finds one task's circuits in several models, with the tokenizer of the first; one model is in memory at a time.

    Args:
        task: The pairs.
        method: How circuits are found.
        options: Further options of `find`.
        seed: Of the search, and of the completions that rewards are measured with.
        device: Where to compute.
    """

    def __init__(self, task: Task, method: str, options: dict[str, Any], seed: int, device: str) -> None:
        self._task, self._method, self._options = task, method, options
        self._seed, self._device = seed, device
        self._loaded: models.Loaded | None = None
        self._tokenizer: Any = None

    def circuit(self, model: str) -> Circuit:
        """Load a model and find its circuit."""
        from rlforget.circuits import find as search

        self._loaded = None  # before the next one is loaded
        self._loaded = models.load(model, self._device)
        self._tokenizer = self._tokenizer or self._loaded.tokenizer
        with output.step(f"finding the circuit of {self._task.name} by {self._method}, {len(self._task)} pairs"):
            return search(
                self._loaded.model,
                self._task,
                self._method,
                tokenizer=self._tokenizer,
                seed=self._seed,
                **self._options,
            )

    def reward(self, domain: RewardedDomain | None, completions: int) -> float | None:
        """Return the mean sampled reward of the model that was loaded last; None where there is no domain."""
        if domain is None or self._loaded is None:
            return None
        return models.rewards(self._loaded, [domain], samples=completions, seed=self._seed)[domain.name].mean


def _write_json(path: Path, value: Any, *, force: bool) -> None:
    """Write a JSON file, whole or not at all."""
    from rlforget.weights.atomic import new_file

    with new_file(path, force=force) as file:
        file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _judged(loaded: models.Loaded, task: Task, circuit: Circuit, setting: dict[str, Any]) -> dict[str, Any]:
    """Measure the circuit's faithfulness, and that of the best heads over sizes, with intervals over prompts."""
    from rlforget.circuits import curve, evaluate_circuit

    with output.step("judging the circuit, alone and over sizes"):
        alone = evaluate_circuit(loaded.model, task, circuit.mask, tokenizer=loaded.tokenizer, **setting)
        sizes = curve(loaded.model, task, circuit, tokenizer=loaded.tokenizer, **setting)
    return {
        **alone.to_dict(),
        "interval": alone.interval().to_dict(),
        "curve": {**sizes.to_dict(), **{f"{area}_interval": sizes.interval(area).to_dict() for area in ("cpr", "cmd")}},
    }


def _changed(
    comparison: Comparison,
    runs: dict[str, list[str]],
    base: str,
    domain: str | None,
    samples: int,
    seed: int,
    device: str,
) -> dict[str, ChangedWeights]:
    """Say which weights of the heads that one fine-tune broke and another kept changed; with a domain, the damage too.

    Of a fine-tune of several runs, it is the first one's weights.
    """
    import torch

    import rlforget as rf

    found = {}
    for one in comparison.differences:
        if one.broken is None:
            continue
        loaded = models.load(runs[one.first][0], device)
        name = f"heads that {one.first} broke and {one.second} kept, delta {one.broken.delta:g}"
        with output.step(f"looking into the weights of {one.broken.count} heads of {one.first}"):
            delta = rf.diff(models.folder_of(base), loaded.folder)
            fisher = None
            if domain is not None:
                names: dict[str, Any] = {"samples": samples, "seed": seed, "tokenizer": loaded.tokenizer}
                fisher = rf.fisher(loaded.model, domain, delta, where="earlier", **names)
            heads = torch.from_numpy(one.broken.heads)
            found[name] = rf.circuits.head_changes(loaded.model, delta, heads, fisher=fisher)
    return found
