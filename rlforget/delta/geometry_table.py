"""The geometry of an update as a table for people, at most 100 columns wide."""

from __future__ import annotations

from rlforget.delta.overlaps import SetOverlap
from rlforget.delta.update_geometry import Geometry, MatrixGeometry, Turn

_NAME_WIDTH = 30
_ROW = "{:<30} {:>9} {:>13} {:>17} {:>13} {:>12}"
_HEAD = _ROW.format("", "|d|/|W|", "stable rank", "spectral shift", "turn, deg", "principal")


def render(geometry: Geometry) -> str:
    """Return the table; see `Geometry.table`."""
    body = [_row(name, matrix) for name, matrix in geometry.matrices.items()]
    bounded = max((matrix.error for matrix in geometry.matrices.values()), default=0.0)
    legend = [
        "Each number / what chance gives. stable rank: |d|^2 over the square of its largest singular value,",
        "beside a matrix of independent entries; shift of the singular values and turn of the leading",
        "subspaces (the largest angle), beside the same update with rows, columns and signs shuffled;",
        f"principal: share of the changed coordinates among the {100 * geometry.share:.3g}% largest entries",
        "of what the leading singular vectors reconstruct.",
    ]
    if bounded:
        legend.append(f"Large matrices: leading singular values alone, known to {bounded:.1e} of the largest.")
    return "\n".join([_HEAD, *body, *legend])


def _row(name: str, matrix: MatrixGeometry) -> str:
    name = name.encode("unicode_escape").decode()
    if len(name) > _NAME_WIDTH:
        name = "..." + name[3 - _NAME_WIDTH :]
    relative = matrix.update_norm / matrix.norm if matrix.norm else float("inf")
    return _ROW.format(
        name,
        f"{relative:.1e}",
        f"{matrix.stable_rank:.1f}/{matrix.stable_rank_by_chance:.1f}",
        f"{matrix.turn.shift:.1e}/{matrix.turn_by_chance.shift:.1e}",
        f"{_degrees(matrix.turn)}/{_degrees(matrix.turn_by_chance)}",
        _shares(matrix.changed_principal),
    )


def _degrees(turn: Turn) -> str:
    return f"{57.29577951308232 * turn.largest:.2g}"


def _shares(overlap: SetOverlap) -> str:
    return f"{100 * overlap.of_first:.1f}/{100 * overlap.of_first_by_chance:.1f}%"
