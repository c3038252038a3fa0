"""The demo's results as a Markdown page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rlforget.experiments.settings import EARLIER, LATER, SEQUENCE

_BARS = (
    ("`fisher`, 5% of coordinates", ("fisher", 0.05), 0.75, 0.85),
    ("conflict subspace, dense", ("dense subspace", None), 0.92, 0.95),
    ("old bits, 2% of coordinates by `subspace`", ("subspace", 0.02), 0.85, 0.90),
)
_CONTROLS = (
    ("`random`, 2% of coordinates", ("random", 0.02), 0.25),
    ("`random`, 5% of coordinates", ("random", 0.05), 0.25),
    ("a random subspace of as many dimensions", ("random subspace", None), 0.25),
)


_READING = """**regained** is Σ(repaired − now) / Σ(then − now) over the earlier domains, with *then* the stage after
the last of them and *now* the end; **kept** is Σ(repaired − then) / Σ(now − then) over the later ones. Means over
seeds, each seed's value in brackets."""

_CONTROL_NOTE = """`opposed` and `taylor` are controls: on a model's own samples the mean gradient, which `taylor`
adds, is noise."""


def page(results: dict[str, Any], command: str) -> str:
    """Write the page: what was held against which bar, then every table, means and values by seed."""
    summary = results["summary"]
    repairs = table(("repair", "coordinates", "regained", "kept", "norm of δ moved"), _repairs(summary))
    sections = [
        ["# The demo", "", *_intro(results, command), "", _READING],
        ["## Against the bars", "", *table(("what", "at least", "measured"), _against_bars(summary))],
        ["## Every repair", "", *repairs, "", _CONTROL_NOTE],
        ["## Rewards by stage", *(line for run in results["runs"] for line in ["", *_stages(run)])],
        ["## SFT and RL", "", *_comparison(results)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _intro(results: dict[str, Any], command: str) -> list[str]:
    settings = results["settings"]
    seeds = ", ".join(map(str, results["summary"]["seeds"]))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in results["runs"])
    stages = zip(SEQUENCE, settings["steps"], settings["learning_rates"], strict=True)
    steps = ", ".join(f"{name} {count} at {rate:g}" for name, count, rate in stages)
    return [
        f"Made by `{command}`: GRPO on {' → '.join(SEQUENCE)} from the shipped miniature, seeds {seeds}.",
        f"Steps and learning rates: {steps}. Every reward is the mean over {settings['evaluation_prompts']} sampled",
        "completions of evaluation prompts, which are used for nothing else; Fishers and subspaces use",
        f"{settings['samples']} completions a domain. Restored: {', '.join(EARLIER)}; protected: {', '.join(LATER)}.",
        f"{versions}; {results['machine']}; {seconds} s a seed.",
    ]


def _comparison(results: dict[str, Any]) -> list[str]:
    settings = results["settings"]
    head = ("seed", "by", "steps", *SEQUENCE, "forgotten", "same in bf16", "KL, others", "KL, target")
    return [
        "From the stage before the last, on the last one's domain, 128 sequences a step, at the last stage's",
        f"learning rate ({settings['learning_rates'][-1]:g}). **forgotten**: mean reward lost on the other domains.",
        "**KL**: from the start to the fine-tune, nats a completion.",
        "",
        f"Both until the same sampled training reward, {settings['target_reward']}:",
        "",
        *table(head, _sft_and_rl(results, "sft_and_rl")),
        "",
        _forgotten(results, "sft_and_rl"),
        "",
        f"Both for the last stage's {settings['steps'][-1]} steps (GRPO is that stage itself):",
        "",
        *table(head, _sft_and_rl(results, "sft_and_rl_of_one_length")),
        "",
        _forgotten(results, "sft_and_rl_of_one_length"),
    ]


def _forgotten(results: dict[str, Any], key: str) -> str:
    """Say whether one of the two forgot more, by more than their spread over seeds."""
    rl, sft = ([run[key][method]["forgotten"] for run in results["runs"]] for method in ("grpo", "sft"))
    means = f"Forgotten on average: GRPO {statistics.fmean(rl):.3f}, SFT {statistics.fmean(sft):.3f}"
    gap = abs(statistics.fmean(rl) - statistics.fmean(sft))
    if len(rl) < 2:
        return f"{means}; one seed, so no spread to hold the difference against."
    spread = max(statistics.stdev(rl), statistics.stdev(sft))
    verdict = "more than" if gap > spread else "within"
    return f"{means}; the difference is {verdict} their spread over seeds (standard deviation {spread:.3f})."


def _against_bars(summary: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    found = {(repair["rule"], repair["fraction"]): repair for repair in summary["repairs"]}
    for name, spread in summary["lost"].items():
        yield f"reward {name} lost to later domains", "0.10 in one of them", _spread(spread)
    for what, key, regained, kept in _BARS:
        bars = f"regained {regained:.2f}, kept {kept:.2f}"
        yield what, bars, f"{_spread(found[key]['regained'])}, {_spread(found[key]['kept'])}"
    for what, key, limit in _CONTROLS:
        yield what, f"regained under {limit:.2f}", _spread(found[key]["regained"])


def _repairs(summary: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for repair in summary["repairs"]:
        share = "all" if repair["fraction"] is None else f"{repair['fraction']:.0%}"
        figures = (_spread(repair[key]) for key in ("regained", "kept"))
        yield repair["rule"], share, *figures, f"{repair['norm_share']['mean']:.0%}"


def _stages(run: dict[str, Any]) -> list[str]:
    head = ("after stage", *SEQUENCE, "same bits", "within 1e-5", "within 0.1%", "norm of δ")
    rows = []
    for stage in run["stages"]:
        total = stage.get("delta", {}).get("total")
        shares = (
            [f"{total[key]:.1%}" for key in ("sparsity", "sparsity_absolute", "sparsity_relative")] if total else []
        )
        change = [*shares, f"{total['l2']:.2f}"] if total else [""] * 4
        rows.append((stage["name"], *(f"{stage['rewards'][name]:.3f}" for name in SEQUENCE), *change))
    return [
        f"Seed {run['seed']}; the last columns are the share of coordinates that the stage left.",
        "",
        *table(head, rows),
        "",
    ]


def _sft_and_rl(results: dict[str, Any], key: str) -> Iterable[tuple[str, ...]]:
    for run in results["runs"]:
        compared, seed = run[key], str(run["seed"])
        yield seed, "start", "", *(f"{compared['start']['rewards'][name]:.3f}" for name in SEQUENCE), *[""] * 4
        for method in ("grpo", "sft"):
            tuned = compared[method]
            kl = tuned["kl_to_start"]
            yield (
                seed,
                method,
                str(tuned["steps"]),
                *(f"{tuned['rewards'][name]:.3f}" for name in SEQUENCE),
                f"{tuned['forgotten']:.3f}",
                f"{tuned['sparsity']['bfloat16']:.1%}",
                f"{sum(kl.values()) / len(kl):.2f}",
                f"{tuned['kl_on_target']:.2f}",
            )


def _spread(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.2f} ({', '.join(f'{value:.2f}' for value in spread['values'])})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Write a Markdown table, a line a row."""
    head = tuple(head)
    return [_row(head), _row(("---",) * len(head)), *(_row(row) for row in rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
