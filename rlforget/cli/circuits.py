"""`circuits find | compare | restore`: the heads a task needs, which of them a fine-tune broke, and their repair."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlforget.cli import models, output
from rlforget.cli.options import Device, DryRun, Force, Json, Model, OutFolder, Samples, Seed

if TYPE_CHECKING:
    from rlforget.circuits import Circuit, Task
    from rlforget.circuits.restoration import RestorationEffect
    from rlforget.circuits.trajectory import Trajectory
    from rlforget.domains import Domain as RewardedDomain

Domain = Annotated[
    str | None,
    typer.Option(help="The domain whose counterfactuals are the task: a name or a .jsonl domain.", metavar="NAME"),
]
TaskFile = Annotated[
    Path | None,
    typer.Option("--task", help="A .jsonl file of pairs instead: clean, counterfactual, target, distractor, spans."),
]
Method = Annotated[str, typer.Option(help="eap-ig, patching, attribution, masking, or the control random.")]
Metric = Annotated[str, typer.Option(help="log_prob_difference, log_prob, or probability.")]
Ablation = Annotated[Literal["resample", "mean", "zero"], typer.Option(help="What takes the place of a head's output.")]
Positions = Annotated[Literal["all", "last"], typer.Option(help="Where it does.")]
Size = Annotated[
    str | None,
    typer.Option(
        help="Heads in the circuit: a share such as 0.25, or a count such as 12.",
        show_default="the method's choice, else all that matter",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the method, e.g. steps=10; may be repeated.", metavar="NAME=VALUE"),
]
Pairs = Annotated[int, typer.Option(help="Pairs of prompts.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Pairs a forward.", min=1)]

NOTHING_TO_DO = 3
_MOST_COLUMNS = 8  # heads of a layer that fit beside each other
_LISTED = 20


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

    wanted, options = _size(size), _options(option or [])
    chosen = _task(domain, task, samples, seed)
    _check_method(method)
    if out is not None:
        check_free(out, force=force)
    loaded = models.load(model, device)
    with output.step(f"finding the circuit of {chosen.name} by {method}, {len(chosen)} pairs"):
        circuit = search(
            loaded.model,
            chosen,
            method,
            tokenizer=loaded.tokenizer,
            metric=metric,
            ablation=ablation,
            positions=positions,
            size=wanted,
            batch_size=batch_size,
            seed=seed,
            **options,
        )
    if out is not None and not dry_run:
        _write_json(out, circuit.to_dict(), force=force)
    if as_json:
        output.json_object({**circuit.to_dict(), "task": chosen.name, "out": None if dry_run else out})
        return
    _show(circuit)
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
    completions: Annotated[int, typer.Option(help="Completions for a checkpoint's reward.", min=1)] = 256,
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

    runs, ways = _by_name(tuned, "NAME=MODEL"), _by_name(checkpoint or [], "--checkpoint")
    lacking = next((name for name in ways if len(runs.get(name, [])) != 1), None)
    if lacking is not None:
        raise typer.BadParameter(f"{lacking!r} is not the name of one model", param_hint="--checkpoint")
    options = {"metric": metric, "ablation": ablation, "positions": positions, "batch_size": batch_size}
    wanted = {"size": _size(size), **options, **_options(option or [])}
    chosen = _task(domain, task, samples, seed)
    _check_method(method)
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
    with output.step(f"comparing, {draws} draws of every control"):
        comparison = compare_circuits(first, found, **drawn)
    whole = record(chosen.name, comparison, trajectories)
    if out is not None and not dry_run:
        _write_json(out, whole, force=force)
    if as_json:
        output.json_object({**whole, "out": None if dry_run else out})
        return
    output.line(comparison.table())
    for name, trajectory in trajectories.items():
        output.line(f"\n{name}\n{trajectory.table()}")
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
    chosen = _chosen(heads, circuit)
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
        models.save(loaded.model, loaded.tokenizer, out, like=loaded.folder, force=force)
    if as_json:
        found = {name: effect.to_dict() for name, effect in effects.items()}
        output.json_object({**report.to_dict(), "effects": found, "out": None if dry_run else out})
        return
    if effects:
        _show_effects(effects)
    output.line(f"{len(chosen)} heads, {report.written:,} of their {report.coordinates:,} coordinates written")
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
        return models.rewards(self._loaded, [domain], samples=completions, seed=self._seed)[domain.name]


def _by_name(pairs: Sequence[str], hint: str) -> dict[str, list[str]]:
    """Read NAME=MODEL, keeping the order.

    Raises:
        typer.BadParameter: A pair is none, or takes the base's name.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, model = pair.partition("=")
        if not name or not model:
            raise typer.BadParameter(f"{pair!r} is not NAME=MODEL", param_hint=hint)
        if name == "base":
            raise typer.BadParameter("the name 'base' is the base's", param_hint=hint)
        found.setdefault(name, []).append(model)
    return found


def _task(domain: str | None, file: Path | None, samples: int, seed: int) -> Task:
    """Build the task that the options name.

    Raises:
        typer.BadParameter: Neither or both are given.
    """
    from rlforget.circuits import Task as Pairs

    if (domain is None) == (file is None):
        raise typer.BadParameter("give a domain, or a file with --task", param_hint="--domain")
    if domain is not None:
        return Pairs.from_domain(domain, count=samples, seed=seed)
    whole = Pairs.from_jsonl(file)  # type: ignore[arg-type]
    return Pairs(whole.name, whole.pairs[:samples])


def _check_method(method: str) -> None:
    """Refuse a method that there is not, before a model is loaded."""
    from rlforget.circuits import METHODS
    from rlforget.errors import UnknownNameError

    if method not in list(METHODS):
        raise UnknownNameError(
            f"method {method!r}", expected=f"one of {', '.join(METHODS)}", found=repr(method), fix="Check the spelling."
        )


def _size(text: str | None) -> int | float | None:
    """Read a size: a whole number is a count, one with a point a share.

    Raises:
        typer.BadParameter: It is neither.
    """
    if text is None:
        return None
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d*\.\d+|\d+\.", text) and float(text) <= 1:
        return float(text)
    raise typer.BadParameter(f"{text!r} is neither a share such as 0.25 nor a count such as 12", param_hint="--size")


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE, the values as JSON where they are, else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--option")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _chosen(heads: str | None, circuit: Path | None) -> list[tuple[int, int]]:
    """Return the heads that the options choose.

    Raises:
        typer.BadParameter: Neither or both are given, or the heads are not written as LAYER:HEAD.
        typer.Exit: The circuit has no head.
    """
    from rlforget.circuits import Circuit as File

    if (heads is None) == (circuit is None):
        raise typer.BadParameter("give heads, or a file with --circuit", param_hint="--heads")
    if circuit is not None:
        chosen = File.load(circuit).heads()
        if not chosen:
            output.note(f"nothing to do: {circuit} has no head")
            raise typer.Exit(NOTHING_TO_DO)
        return chosen
    found = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in str(heads).split(",")]
    if not all(found):
        raise typer.BadParameter(f"{heads!r} is not LAYER:HEAD,LAYER:HEAD", param_hint="--heads")
    return sorted({(int(one[1]), int(one[2])) for one in found if one})


def _write_json(path: Path, value: Any, *, force: bool) -> None:
    """Write a JSON file, whole or not at all."""
    from rlforget.weights.atomic import new_file

    with new_file(path, force=force) as file:
        file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _show(circuit: Circuit) -> None:
    """Write the scores, those of the circuit's heads with a star, and what the metric was."""
    layers, heads = circuit.scores.shape
    scores, mask = circuit.scores.tolist(), circuit.mask.tolist()

    def cell(layer: int, head: int) -> str:
        return f"{scores[layer][head]:+.3f}{'*' if mask[layer][head] else ' '}"

    if heads <= _MOST_COLUMNS:
        rows = [(str(layer), *(cell(layer, head) for head in range(heads))) for layer in range(layers)]
        output.table(("layer", *(f"head {head} " for head in range(heads))), rows)
    else:
        order = sorted((-abs(scores[i][j]), i, j) for i in range(layers) for j in range(heads))[:_LISTED]
        output.table(("head", "score "), [(f"{i}:{j}", cell(i, j)) for _, i, j in order])
        output.line(f"the {len(order)} largest of {layers * heads}")
    means = circuit.metric
    output.line(
        f"{means['name']}: {means['clean']:.3f} clean, {means['corrupt']:.3f} counterfactual, "
        f"{means['ablated']:.3f} with every head replaced"
    )
    total = layers * heads
    share = output.percent(circuit.size / total)
    output.line(f"* {circuit.size} of {total} heads ({share}) in the circuit, {circuit.seconds:.1f} s")


def _show_effects(effects: dict[str, RestorationEffect]) -> None:
    rows = [
        (
            name,
            f"{one.before:.3f}",
            f"{one.after:.3f}",
            _spread(one.random),
            f"{one.everything:.3f}",
            f"{one.p_value:.3f}",
        )
        for name, one in effects.items()
    ]
    output.table(("domain", "reward before", "after", "random heads", "all heads", "p"), rows)


def _spread(values: Sequence[float]) -> str:
    """Write the mean of some values, and the lowest and the highest."""
    if not values:
        return "–"
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"
