"""Heat maps of the model: a row a layer, a column a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlforget.report.figure import Figure, figure, label, plain
from rlforget.report.results import Place

_MOST_ROWS = 40  # with numbers in the cells


@dataclass(frozen=True)
class Grid:
    """The rows and columns that the maps of a model share.

    Attributes:
        rows: The layers from below to above, as plotly counts them: what lies outside of all layers is the lowest.
        columns: The modules, in the model's order.
    """

    rows: list[int | None]
    columns: list[str]

    @classmethod
    def of(cls, places: Sequence[Place]) -> Grid:
        """Lay out some places, in the model's order."""
        rows = sorted({layer for layer, _ in places}, key=lambda layer: (layer is not None, -(layer or 0)))
        inside = [module for layer, module in places if layer is not None]
        return cls(rows, list(dict.fromkeys([*inside, *(module for _, module in places)])))

    @property
    def height(self) -> int:
        """Of a plot, in CSS pixels."""
        return min(900, 150 + 38 * len(self.rows))

    def figure(
        self, value: Callable[[Place], float], lines: Mapping[Place, list[str]], form: str, scale: Figure
    ) -> Figure:
        """Draw a map.

        Args:
            value: Of a place; NaN where it has none.
            lines: What more is said of a place to whoever points at it, each line safe to show.
            form: How a value is written, as d3 takes it.
            scale: The colour scale and its ends.
        """
        deep = max((len(said) for said in lines.values()), default=0)
        told = [[self._padded(lines.get((layer, module), []), deep) for module in self.columns] for layer in self.rows]
        shown = "".join(f"<br>%{{customdata[{line}]}}" for line in range(deep))
        trace: Figure = {
            "type": "heatmap",
            "z": [plain(value((layer, module)) for module in self.columns) for layer in self.rows],
            "customdata": told,
            **scale,
            "xgap": 2,
            "ygap": 2,
            "texttemplate": f"%{{z:{form}}}" if len(self.rows) <= _MOST_ROWS else "",
            "hovertemplate": f"<b>%{{y}}, %{{x}}: %{{z:{form}}}</b>{shown}<extra></extra>",
            "hoverongaps": False,
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": form, "nticks": 5},
        }
        names = ["elsewhere" if layer is None else f"layer {layer}" for layer in self.rows]
        return figure([trace], xaxis=_ticks([label(module) for module in self.columns]), yaxis=_ticks(names))

    @staticmethod
    def _padded(lines: list[str], count: int) -> list[str]:
        return [*lines, *[""] * (count - len(lines))]


def _ticks(names: list[str]) -> Figure:
    return {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
