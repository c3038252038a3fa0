"""The plots. Each one's title states what its numbers say."""

from __future__ import annotations

from rlforget.report.plots.circuits import CIRCUIT_CHOICES, circuit_plots, vulnerable_plots
from rlforget.report.plots.comparison import comparison_plots
from rlforget.report.plots.damage import damage_plots, subspace_plot
from rlforget.report.plots.overlap import OVERLAP_CHOICES, overlap_plot
from rlforget.report.plots.places import PLACE_CHOICES, place_plots
from rlforget.report.plots.repairs import repairs_plot
from rlforget.report.plots.rewards import rewards_plot
from rlforget.report.plots.steps import step_plots

__all__ = [
    "CIRCUIT_CHOICES",
    "OVERLAP_CHOICES",
    "PLACE_CHOICES",
    "circuit_plots",
    "comparison_plots",
    "damage_plots",
    "overlap_plot",
    "place_plots",
    "repairs_plot",
    "rewards_plot",
    "step_plots",
    "subspace_plot",
    "vulnerable_plots",
]
