"""The demo's tables, as plain lines of at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlforget.experiments.settings import SEQUENCE


def main_tables(run: dict[str, Any]) -> list[str]:
    """Every table of one seed: rewards by stage, deltas, overlaps, repairs, SFT against RL."""
    return [*_stages(run), *_overlaps(run), *_repairs(run), *_sft_and_rl(run)]


def summary_table(summary: dict[str, Any]) -> list[str]:
    """Means over seeds of what the earlier domains lost, and of every repair, each seed's value in brackets."""
    head = ["repair", "coordinates", "regained", "", "kept", ""]
    rows = [
        [repair["rule"], _share(repair["fraction"]), *_mean(repair["regained"]), *_mean(repair["kept"])]
        for repair in summary["repairs"]
    ]
    lost = "  ".join(" ".join([name, *_mean(spread)]) for name, spread in summary["lost"].items())
    return ["", f"Means over seeds {summary['seeds']}", f"lost: {lost}", *_aligned(head, rows)]


def _mean(spread: dict[str, Any]) -> list[str]:
    return [f"{spread['mean']:.2f}", f"({', '.join(f'{value:.2f}' for value in spread['values'])})"]


def _share(fraction: float | None) -> str:
    return "all" if fraction is None else f"{fraction:.0%}"


def _stages(run: dict[str, Any]) -> list[str]:
    head = ["after stage", *SEQUENCE, "same bits", "within 1e-5", "within 0.1%", "norm of δ"]
    rows = []
    for stage in run["stages"]:
        total = stage.get("delta", {}).get("total")
        kinds = ("sparsity", "sparsity_absolute", "sparsity_relative")
        change = [*(f"{total[kind]:.1%}" for kind in kinds), f"{total['l2']:.2f}"] if total else [""] * 4
        rows.append([stage["name"], *(f"{stage['rewards'][name]:.3f}" for name in SEQUENCE), *change])
    lost = ", ".join(f"{name} {-drop:+.3f}" for name, drop in run["lost"].items())
    title = "Sampled reward of every domain after every stage; the share of coordinates that the stage left"
    return ["", title, *_aligned(head, rows), f"Lost since the last earlier stage: {lost}"]


def _overlaps(run: dict[str, Any]) -> list[str]:
    head = ["stages", "coordinates: Jaccard", "by chance", "top-10% neurons: Jaccard", "by chance"]
    rows = [
        [
            f"{pair['first']}, {pair['second']}",
            *(f"{pair[of][key]:.3f}" for of in ("coordinates", "neurons") for key in ("jaccard", "jaccard_by_chance")),
        ]
        for pair in run["overlaps"]
    ]
    return ["", "Overlap of the stages' deltas", *_aligned(head, rows)]


def _repairs(run: dict[str, Any]) -> list[str]:
    head = ["repair", "coordinates", "regained", "kept", "norm moved", *SEQUENCE]
    rows = [
        [
            repair["rule"],
            _share(repair["fraction"]),
            f"{repair['regained']:.2f}",
            f"{repair['kept']:.2f}",
            f"{repair['norm_share']:.0%}",
            *(f"{repair['rewards'][name]:.3f}" for name in SEQUENCE),
        ]
        for repair in run["repairs"]
    ]
    note = "regained: share of what the earlier domains lost; kept: share of what the later ones gained."
    return ["", "Repairs", *_aligned(head, rows), note]


def _sft_and_rl(run: dict[str, Any]) -> list[str]:
    titles = {
        "sft_and_rl": "SFT and RL from the last stage but one, to the same sampled training reward",
        "sft_and_rl_of_one_length": "SFT and RL from the last stage but one, of the same number of steps",
    }
    return [line for key, title in titles.items() for line in ["", title, *_compared(run[key])]]


def _compared(compared: dict[str, Any]) -> list[str]:
    head = [f"{compared['target']} by", "steps", *SEQUENCE, "forgot", "same bf16", "KL others", "KL target"]
    rows = [["start", "", *(f"{compared['start']['rewards'][name]:.3f}" for name in SEQUENCE), *[""] * 4]]
    for method in ("grpo", "sft"):
        tuned = compared[method]
        kl = tuned["kl_to_start"]
        figures = [
            f"{tuned['forgotten']:.3f}",
            f"{tuned['sparsity']['bfloat16']:.1%}",
            f"{sum(kl.values()) / len(kl):.2f}",
            f"{tuned['kl_on_target']:.2f}",
        ]
        rows.append([method, str(tuned["steps"]), *(f"{tuned['rewards'][n]:.3f}" for n in SEQUENCE), *figures])
    return _aligned(head, rows)


def _aligned(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
