"""The circuit study as a section of a Markdown page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlforget.errors import ConfigError
from rlforget.experiments.markdown import table

BEGIN = "<!-- study of {target}: written by rlforget.experiments.circuits_study -->"
END = "<!-- end of the study of {target} -->"
_METHODS = {"sft": "SFT", "grpo": "GRPO"}


def write_section(page: Path, results: dict[str, Any]) -> None:
    """Write the section of the study's target anew, between its two marks.

    Raises:
        ConfigError: The page has not both marks.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = (mark.format(target=results["study"]["target"]) for mark in (BEGIN, END))
    if not 0 <= text.find(begin) < text.find(end):
        raise ConfigError(str(page), expected=f"{begin!r} before {end!r}", found="not both", fix="Put both marks back.")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{section(results)}\n\n{end}{after}", encoding="utf-8")


def section(results: dict[str, Any]) -> str:
    """Write the tables, with the settings that they come from."""
    blocks = [
        _intro(results),
        *_fine_tunes(results),
        "Circuits, means over bases and seeds; the domain fine-tuned on comes first:",
        *_circuits(results),
        "Vulnerable heads at δ, sum over bases: broken by SFT and kept by GRPO / the reverse, which by chance are "
        "as many:",
        *_vulnerable(results),
    ]
    return "\n\n".join(blocks)


def _intro(results: dict[str, Any]) -> str:
    study = results["study"]
    starts = results["starts"]
    target = study["target"]
    seeds, rates = ", ".join(map(str, study["seeds"])), ", ".join(f"{rate:g}" for rate in study["rates"])
    at_start = "; ".join(
        f"base {number}: " + ", ".join(f"{name} {value:.2f}" for name, value in rewards.items())
        for number, rewards in enumerate(starts)
    )
    return (
        f"Target: {target}. {len(starts)} base(s), seeds {seeds}, learning rates {rates}; {study['sequences']} "
        f"sequences a step; a fine-tune ends at a mean sampled training reward of {study['reward']} over "
        f"{study['window']} steps, or after {study['limit']}. Rewards are means over {study['evaluation_prompts']} "
        f"sampled completions of evaluation prompts, divergences over {study['completions']} completions, circuits "
        f"(exact patching, resample ablation, half of the heads) from {study['pairs']} pairs of evaluation prompts a "
        f"domain. Everything but the comparison took {results['seconds'] / 60:.0f} minutes.\n\n"
        f"Rewards of the starts: {at_start}."
    )


def _fine_tunes(results: dict[str, Any]) -> Iterator[str]:
    head = ("learning rate", "by", "steps to the reward", "reached", "reward", "forgotten", "KL, others", "KL, target")
    yield (
        "**forgotten**: mean reward lost on the other domains; **KL**: from the start to the fine-tune, nats a "
        "completion. Mean (smallest to largest over bases and seeds):"
    )
    yield "\n".join(table(head, (_row(results, rate, method) for rate in _rates(results) for method in _METHODS)))
    if len(results["starts"]) > 1:
        columns = ("base", "learning rate", "by", "steps", "forgotten", "KL, others")
        yield "By base, means over seeds:"
        yield "\n".join(table(columns, _by_base(results)))


def _row(results: dict[str, Any], rate: float, method: str) -> tuple[str, ...]:
    target = results["study"]["target"]
    runs = [run for run in results["runs"] if (run["rate"], run["method"]) == (rate, method)]
    return (
        f"{rate:g}",
        _METHODS[method],
        _spread([run["steps"] for run in runs], ".0f"),
        f"{sum(run['stopped'] for run in runs)} of {len(runs)}",
        _spread([run["rewards"][target] for run in runs], ".3f"),
        _spread([_forgotten(results, run) for run in runs], "+.3f"),
        _spread([_kl_others(target, run) for run in runs], ".2f"),
        _spread([run["kl"][target] for run in runs], ".2f"),
    )


def _by_base(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    target = results["study"]["target"]
    for number in range(len(results["starts"])):
        for rate in _rates(results):
            for method, label in _METHODS.items():
                key = (number, rate, method)
                runs = [run for run in results["runs"] if (run["base"], run["rate"], run["method"]) == key]
                yield (
                    str(number),
                    f"{rate:g}",
                    label,
                    f"{statistics.fmean(run['steps'] for run in runs):.0f}",
                    f"{statistics.fmean(_forgotten(results, run) for run in runs):+.3f}",
                    f"{statistics.fmean(_kl_others(target, run) for run in runs):.2f}",
                )


def _circuits(results: dict[str, Any]) -> Iterator[str]:
    head = (
        "learning rate",
        "circuit of",
        "retention SFT",
        "GRPO",
        "chance (95% null)",
        "ceiling",
        "on halves SFT",
        "GRPO",
        "correlation SFT",
        "GRPO",
        "p, correlation",
    )
    yield "\n".join(table(head, _circuit_rows(results)))
    yield "The other measures of the same circuits:"
    columns = (
        "learning rate",
        "circuit of",
        "retention, 95% SFT",
        "GRPO",
        "IoU SFT",
        "GRPO",
        "chance",
        "mask shift SFT",
        "GRPO",
        "chance (95% null)",
        "p, IoU",
        "p, mask shift",
    )
    yield "\n".join(table(columns, _other_rows(results)))
    yield (
        "**retention**: |C_base ∩ C| / |C_base|; **chance**: with the fine-tune's heads drawn at random; **ceiling**: "
        "the start against itself on halves of the prompts, beside which **on halves** is to be read; **correlation**: "
        "of the heads' effects with the start's; **95%**: bootstrap over prompts, the mean over runs of each end; "
        "**IoU**: |C_base ∩ C| / |C_base ∪ C|; **mask shift**: mean of |m_h − m_h^base|, 0 where nothing moved; **p**: "
        "against SFT keeping as much as GRPO, whole runs exchanged within each base."
    )


def _circuit_rows(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for rate, by_domain in results["circuits"].items():
        for name in _ordered(results, by_domain):
            methods = by_domain[name]["methods"]
            retention = [methods[method]["retention"] for method in _METHODS]
            correlation = [methods[method]["correlation"] for method in _METHODS]
            low, high = retention[0]["null"]
            yield (
                rate,
                name,
                *(f"{statistics.fmean(one['values']):.2f}" for one in retention),
                f"{retention[0]['chance']:.2f} ({low:.2f}–{high:.2f})",
                _number(retention[0]["ceiling"]),
                *(_number(one["at_halves"]) for one in retention),
                *(_spread(one["values"], ".3f") for one in correlation),
                f"{by_domain[name]['p']['correlation']:.3f}",
            )


def _other_rows(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for rate, by_domain in results["circuits"].items():
        for name in _ordered(results, by_domain):
            methods, p = by_domain[name]["methods"], by_domain[name]["p"]
            retention, iou, shift = (
                [methods[method][measure] for method in _METHODS] for measure in ("retention", "iou", "mask_shift")
            )
            low, high = shift[0]["null"]
            yield (
                rate,
                name,
                *("–".join(map(_number, one["interval"])) for one in retention),
                *(f"{statistics.fmean(one['values']):.2f}" for one in iou),
                f"{iou[0]['chance']:.2f}",
                *(_spread(one["values"], ".3f") for one in shift),
                f"{shift[0]['chance']:.2f} ({low:.2f}–{high:.2f})",
                f"{p['iou']:.3f}",
                f"{p['mask_shift']:.3f}",
            )


def _vulnerable(results: dict[str, Any]) -> Iterator[str]:
    first = next(iter(results["circuits"].values()))
    deltas = [one["delta"] for one in next(iter(first.values()))["vulnerable"][0]]
    head = ("learning rate", "circuit of", *(f"δ = {delta:g}" for delta in deltas))
    rows = []
    for rate, by_domain in results["circuits"].items():
        for name in _ordered(results, by_domain):
            of_bases = by_domain[name]["vulnerable"]
            counts = (
                f"{sum(base[i]['count'] for base in of_bases)} / {sum(base[i]['reverse'] for base in of_bases)}"
                for i in range(len(deltas))
            )
            rows.append((rate, name, *counts))
    yield "\n".join(table(head, rows))


def _ordered(results: dict[str, Any], names: Iterable[str]) -> list[str]:
    target = results["study"]["target"]
    return [target, *(name for name in names if name != target)]


def _forgotten(results: dict[str, Any], run: dict[str, Any]) -> float:
    before = results["starts"][run["base"]]
    others = [name for name in before if name != results["study"]["target"]]
    return statistics.fmean(before[name] - run["rewards"][name] for name in others)


def _kl_others(target: str, run: dict[str, Any]) -> float:
    return statistics.fmean(value for name, value in run["kl"].items() if name != target)


def _rates(results: dict[str, Any]) -> list[float]:
    return list(results["study"]["rates"])


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
