"""The study's page: every bar with what was measured beside it, then the tables, from the committed rows alone."""

from __future__ import annotations

import math
import statistics
import textwrap
from typing import Any

from rlforget.experiments.markdown import table
from rlforget.experiments.recovery_study.bars import BARS, MAIN
from rlforget.experiments.recovery_study.growth import ROW_BUDGET
from rlforget.experiments.recovery_study.reading import by, law_of_growth, mean_of, pooled, select
from rlforget.experiments.recovery_study.scene import Row

_READING = """**regained** is Σ(after − now) / Σ(then − now) over the earlier domains, with *then* their stage and *now*
the later one; **kept** is Σ(after − then) / Σ(now − then) over the later ones. Means over scenes (pairs and sequences ×
seeds), ± standard deviation over them, n scenes. Every reward is a mean over sampled completions of evaluation prompts,
which are used for nothing else. A scene whose earlier domain lost, or whose later one gained, less than {least:g} has
no share to speak of: it stands in the tables of losses and of damage alone. A mean of shares weighs a small loss, which
is measured less surely, like a large one: *pooled* shares are those of all losses, and all gains, added up."""

_VERDICTS = (
    "A verdict is by the means, rounded as they are shown; where a bar holds for each of several, by each. Halved is a "
    "cost where both ways to protect halve it."
)
_KL = """The divergence of the later model from the earlier one, on the earlier domain's prompts, stands beside the
curvature because M2RL (arXiv 2602.12566) finds that it is gradients and policy divergence, not weights, by which
domains interfere, and reports synergy where 2606.02398 reports conflict. All are correlated with the measured rise of
the loss over the same scenes and strengths; at full strength alone they are told too, since strengths of one scene are
easily ranked. The curvatures are taken at the earlier stage, before the change, or at three points along it, where no
loss is measured either; the divergences are measured after it.
KL(then ‖ now) is the very thing that the rise estimates, from the same completions: it shows how well that is measured,
and predicts nothing."""

_GROWTH = """One pair and one seed a size. Rows of tokens, likely or not, are drawn from all, {budget} a domain at most.
With μ auto λ is chosen on held-out rows too, and with μ 0.001 it is 10."""

_CONTRACTION = """Contraction: ‖P_S(θ_t − θ_A)‖ over its start, beside the bound of the refresh theorem of 2606.02398.
The descent is on KL(π_A ‖ π) over all weights, with the model's own curvature; the theorem bounds descent where the
loss is quadratic, so a bound that is exceeded says how far from quadratic this loss is."""


def page(rows: list[Row], settings: dict[str, Any], command: str, versions: str, pictures: dict[str, str]) -> str:
    """Write the page.

    Args:
        rows: The table.
        settings: The study's configuration.
        command: What made the table.
        versions: Of what it was made with.
        pictures: Markdown paths of the pictures by their names; those not drawn are left out.
    """
    sections = [
        [
            "# Results",
            "",
            *_intro(rows, settings, command, versions),
            "",
            _READING.format(least=settings["least_loss"]),
        ],
        [
            "## Against the bars",
            "",
            *table(("what", "at least", "measured", "verdict"), _against_bars(rows, settings)),
            "",
            _VERDICTS,
        ],
        ["## What was lost", *_picture(pictures, "stages"), *_losses(rows)],
        ["## Every rule", *_picture(pictures, "rules"), "", *_rules(rows)],
        ["## Refreshes", "", *_refreshes(rows)],
        ["## Damage, predicted and measured", *_picture(pictures, "damage"), "", _KL, "", *_damage(rows)],
        ["## How few directions", *_picture(pictures, "curve"), "", *_curve(rows)],
        ["## How the samples grow with the model", *_picture(pictures, "sizes"), "", *_sizes(rows)],
        ["## Where the seconds go", "", *_seconds(rows)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _intro(rows: list[Row], settings: dict[str, Any], command: str, versions: str) -> list[str]:
    lengths = []
    for method, several in settings["methods"].items():
        told = ", ".join(
            f"{stage} {one['steps']} steps at {one['learning_rate']:g}" for stage, one in several.items() if one
        )
        lengths.append(f"{method} ({told})")
    if rates := {one["size"]: one["rate"] for one in settings.get("sizes", []) if one["rate"] != 1.0}:
        told = ", ".join(f"{size} at {rate:g} of these learning rates" for size, rate in rates.items())
        lengths.append(told)
    scenes = select(rows, rule="none")
    counted = select(scenes, counts=True)
    said = (
        f"Made by `{command}`; every figure is computed from the rows of [results.csv](results.csv). Stages: "
        f"{'; '.join(lengths)}. {len(scenes)} scenes, of which {len(counted)} lost and gained enough to count; "
        f"{settings['evaluation_prompts']} evaluation prompts a domain, {settings['samples']} completions a domain for "
        f"Fishers and subspaces where nothing else is said. {versions}."
    )
    return textwrap.wrap(said, 120, break_on_hyphens=False, break_long_words=False)


def _against_bars(rows: list[Row], settings: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(bar.what.format_map(settings), bar.least, bar.measured(rows), bar.verdict(rows)) for bar in BARS]


def _picture(pictures: dict[str, str], name: str) -> list[str]:
    return ["", f"![{name}]({pictures[name]})"] if name in pictures else []


def _losses(rows: list[Row]) -> list[str]:
    """One table a method: an earlier domain a line, a later one a column."""
    lines: list[str] = []
    for (part, method), same in by(select(rows, rule="none"), lambda row: (row["part"], row["method"])).items():
        pairs = by(same, lambda row: (row["base"], row["earlier"], row["later"]))
        told = [
            (
                base,
                earlier,
                later,
                f"{mean_of(scenes, 'then')} → {mean_of(scenes, 'now')}",
                f"{mean_of(scenes, 'later_then')} → {mean_of(scenes, 'later_now')}",
                f"{len(select(scenes, counts=True))} of {len(scenes)}",
            )
            for (base, earlier, later), scenes in pairs.items()
        ]
        head = ("base", "earlier", "later", "reward of the earlier", "reward of the later", "count")
        lines += ["", f"### {part.capitalize()}, {method}", "", *table(head, told)]
    return lines


def _rules(rows: list[Row]) -> list[str]:
    rules = (
        "dense subspace",
        "few prompts",
        "random subspace",
        "along δ",
        "subspace",
        "fisher",
        "two_fisher",
        "taylor",
        "opposed",
        "magnitude",
        "random",
        "fewest",
        "soft",
        "kronecker",
        "auto",
    )
    found = [row for row in rows if row["rule"] in rules and row["part"] in ("pairs", "sequence", "deep")]
    groups = by(
        found,
        lambda row: (
            row["rule"],
            row["budget"],
            row["n"],
            row["rows"],
            row["passes"],
            row["lam"] if row["rule"] == "soft" else None,
        ),
    )
    ordered = sorted(groups.items(), key=lambda item: rules.index(item[0][0]))
    told = []
    for (rule, budget, n, kind, passes, lam), same in ordered:
        cells = [
            f"{mean_of(part, 'regained')} / {mean_of(part, 'kept')} ({len(part)})" if part else ""
            for part in (
                select(same, part=MAIN, method="grpo"),
                select(same, part=MAIN, method="sft"),
                select(same, part="deep"),
            )
        ]
        setting = ", ".join(
            text
            for text in (
                f"{budget:.1%}" if budget else "",
                f"n = {n}" if n else "",
                f"`{kind}`" if kind else "",
                f"{passes} passes" if passes and passes > 1 else "",
                f"λ = {lam}" if lam else "",
            )
            if text
        )
        main = select(same, part=MAIN)
        told.append((rule, setting, *cells, pooled(main), f"{mean_of(main or same, 'norm_share').mean:.0%}"))
    head = ("rule", "setting", "GRPO: regained / kept (n)", "SFT", "deep", "pooled, without deep", "norm moved")
    return table(head, told)


def _refreshes(rows: list[Row]) -> list[str]:
    found = [r for r in rows if str(r["rule"]).startswith(("refresh", "rollback, then"))]
    told = []
    keys = ("part", "method", "rule", "steps")
    for (part, method, rule, steps), same in by(found, lambda row: tuple(row[key] for key in keys)).items():
        drawn = mean_of(same, "samples").mean
        told.append(
            (
                f"{part}, {method}",
                rule,
                str(steps),
                f"{drawn:.0f}",
                str(mean_of(same, "regained")),
                str(mean_of(same, "kept")),
                str(len(same)),
            )
        )
    contraction = [row for row in rows if str(row["rule"]).startswith("contraction")]
    lines = table(("scenes", "what", "steps", "completions drawn", "regained", "kept", "n"), told)
    if contraction:
        told_of = [
            (str(steps), str(mean_of(same, "value")), str(mean_of(same, "predicted")))
            for steps, same in by(contraction, lambda row: row["steps"]).items()
        ]
        lines += ["", _CONTRACTION, ""]
        lines += table(("steps", "measured", "bound"), told_of)
    return lines


def _damage(rows: list[Row]) -> list[str]:
    from rlforget.experiments.recovery_study.reading import spearman

    told = []
    known = [row for row in rows if str(row["rule"]).startswith("damage, ") and row["predicted"] is not None]
    for rule, same in by(known, lambda row: row["rule"]).items():
        for method, some in {"both": same, **by(same, lambda row: row["method"])}.items():
            every, full = ([(r["predicted"], r["value"]) for r in part] for part in (some, select(some, strength=1.0)))
            ratio = statistics.median([a / b for a, b in full if b > 0.0] or [math.nan])
            cells = (f"{spearman(every):.2f} ({len(every)})", f"{spearman(full):.2f} ({len(full)})", f"{ratio:.2f}")
            told.append((rule.removeprefix("damage, "), method, *cells))
    head = ("by", "method", "Spearman, all strengths (n)", "full strength (n)", "median of predicted / measured there")
    return table(head, told)


def _curve(rows: list[Row]) -> list[str]:
    told = []
    for rule in ("by share", "by eigenvalue", "random"):
        groups = by(select(rows, rule=f"curve, {rule}"), lambda row: row["n"])
        scenes = max(map(len, groups.values()), default=0)
        for n, same in sorted(groups.items()):
            if 3 * len(same) < scenes:  # all the directions of a scene that has few
                continue
            shown = (str(mean_of(same, "regained")), str(mean_of(same, "value")))
            told.append((rule, str(n), *shown, str(len(same))))
    spectra, overlaps = select(rows, rule="spectrum"), select(rows, rule="overlap")
    note = (
        f"Effective rank of the earlier domain's Gram matrix of {_first(spectra, 'n')} completions: "
        f"{mean_of(spectra, 'value')}; directions that explain 90% of the damage in the linear model, on the very "
        f"completions that span them: {mean_of(spectra, 'predicted')}; the table has it by reward, on other prompts. "
        f"Mean squared cosine between the two domains' spans: {mean_of(overlaps, 'value')}, by chance "
        f"{mean_of(overlaps, 'predicted')}."
    )
    head = ("directions", "how many", "loss regained", "damage explained", "scenes")
    return [note, "", *table(head, told)]


def _first(rows: list[Row], column: str) -> str:
    return str(rows[0][column]) if rows else "no"


def _sizes(rows: list[Row]) -> list[str]:
    told = []
    key = lambda row: (row["size"], row["rows"], row["passes"], row["mu"], row["n"])  # noqa: E731
    for (size, kind, passes, mu, n), same in by(select(rows, rule="growth"), key).items():
        rank = mean_of(same, "value").mean
        told.append(
            (
                size,
                kind,
                str(passes),
                "" if mu is None else str(mu),
                str(n),
                str(mean_of(same, "regained")),
                str(mean_of(same, "kept")),
                "" if math.isnan(rank) else f"{rank:.0f}",
            )
        )
    lines = table(("size", "rows", "passes", "μ", "n", "regained", "kept", "effective rank"), told)
    lines = [_GROWTH.format(budget=ROW_BUDGET), "", *lines]
    laws = by(select(rows, rule="growth"), lambda row: (row["rows"], row["passes"], row["mu"]))
    for (kind, passes, mu), same in laws.items():
        fitted = law_of_growth(same)
        given = "" if mu is None else f", μ {mu}"
        if fitted is None:
            lines += ["", f"`{kind}` rows, passes: {passes}{given}: no power of n fits."]
        else:
            a, b, n = fitted
            lines += [
                "",
                f"Fitted, `{kind}` rows, passes: {passes}{given}: 1 − regained ∝ n^−{a:.2f} · N^{b:.2f}, so that the "
                f"prompts for 0.90 grow as N^{b / a:.2f}; a model of a million parameters needs {n:.0f}.",
            ]
    return lines


def _seconds(rows: list[Row]) -> list[str]:
    told = []
    for measure, same in by([r for r in rows if r["measure_seconds"] is not None], lambda row: row["measure"]).items():
        units = list(
            {
                (
                    row["base"],
                    row["method"],
                    row["seed"],
                    row["part"],
                    row["earlier"].partition(" ")[0],
                    row["later"],
                ): row
                for row in same
            }.values()
        )
        told.append((measure, str(len(units)), f"{mean_of(units, 'measure_seconds').mean:.0f}"))
    return table(("measurement", "scenes", "seconds a scene"), told)
