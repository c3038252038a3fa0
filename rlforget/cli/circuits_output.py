"""What `rlforget circuits` says, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlforget.cli import output

if TYPE_CHECKING:
    from rlforget.circuits import Circuit
    from rlforget.circuits.restoration import RestorationEffect

_MOST_COLUMNS = 8  # heads of a layer that fit beside each other
_LISTED = 20


def show_circuit(circuit: Circuit) -> None:
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


def show_judged(judged: dict[str, Any]) -> None:
    """Write a circuit's faithfulness, and the areas over sizes, with their intervals."""

    def figure(value: float, interval: dict[str, Any]) -> str:
        return f"{value:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"

    sizes = judged["curve"]
    output.line(
        f"faithfulness: {figure(judged['normalised'], judged['interval'])} of what the heads do, "
        f"F(C)/F(M) {judged['ratio']:.3f}"
    )
    areas = (f"{area.upper()} {figure(sizes[area], sizes[f'{area}_interval'])}" for area in ("cpr", "cmd"))
    output.line(f"over MIB's sizes: {', '.join(areas)}")


def show_effects(effects: dict[str, RestorationEffect]) -> None:
    """Write each domain's reward before and after a repair, beside those of random heads."""
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
