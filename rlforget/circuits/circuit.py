"""A circuit: what each attention head is worth to a task, and the heads that make up the circuit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlforget.errors import ConfigError, NonFiniteError, NotACheckpointError
from rlforget.weights.atomic import new_file

FORMAT = "rlforget.circuit"
VERSION = 1


@dataclass(frozen=True)
class Circuit:
    """The heads that a task needs, as one method sees them in one model.

    Attributes:
        scores: float32 [layers, heads]: how much the metric falls when the head's output is replaced by the
            source's. Positive: the head is needed; negative: it works against the task.
        mask: bool [layers, heads]: the heads of the circuit.
        method: The name of the method.
        metric: The metric's `name`, and its mean over prompts on the `clean` prompts, on the counterfactual ones
            (`corrupt`), and with every head replaced (`ablated`); and the same of every prompt under `per_prompt`.
        settings: What the method was asked to do, and what it did on the way.
        seed: Seed of all that was drawn.
        seconds: Wall-clock time of the search.
        per_prompt: float32 [prompts, layers, heads], whose mean is `scores`: what halves and resamples of the prompts
            are made of without another forward. None where the method has no score of a single prompt.
    """

    scores: Tensor
    mask: Tensor
    method: str
    metric: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    per_prompt: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scores.dim() != 2 or self.mask.shape != self.scores.shape or self.mask.dtype != torch.bool:
            raise ConfigError(
                "circuit",
                expected="scores [layers, heads] and a bool mask of the same shape",
                found=f"scores {tuple(self.scores.shape)}, mask {tuple(self.mask.shape)} of {self.mask.dtype}",
                fix="Give one score and one flag a head.",
            )
        if not bool(torch.isfinite(self.scores).all()):
            raise NonFiniteError(
                f"scores of {self.method!r}",
                expected="finite numbers",
                found="NaN or Inf",
                fix="Run the model in float32 or bfloat16.",
            )

    @property
    def size(self) -> int:
        """How many heads the circuit has."""
        return int(self.mask.sum())

    def top(self, size: int | float) -> Tensor:
        """Return the mask of the highest scores; ties go to the lower layer, then to the lower head.

        Args:
            size: How many heads, or, as a float in [0, 1], which share of all (rounded).

        Returns:
            bool [layers, heads].
        """
        count = head_count(size, self.scores.numel())
        order = self.scores.flatten().sort(descending=True, stable=True).indices
        mask = torch.zeros(self.scores.numel(), dtype=torch.bool)
        mask[order[:count]] = True
        return mask.view(self.scores.shape)

    def heads(self) -> list[tuple[int, int]]:
        """Return the circuit's heads as (layer, head), in order."""
        return [(layer, head) for layer, head in self.mask.nonzero().tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Return the circuit as plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "scores": self.scores.tolist(),
            "mask": self.mask.tolist(),
            "method": self.method,
            "metric": self.metric,
            "settings": self.settings,
            "seed": self.seed,
            "seconds": self.seconds,
            "per_prompt": None if self.per_prompt is None else self.per_prompt.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Circuit:
        """Build a circuit from what `to_dict` returned."""
        return cls(
            torch.tensor(values["scores"], dtype=torch.float32),
            torch.tensor(values["mask"], dtype=torch.bool),
            values["method"],
            values["metric"],
            values["settings"],
            int(values["seed"]),
            float(values["seconds"]),
            None if values.get("per_prompt") is None else torch.tensor(values["per_prompt"], dtype=torch.float32),
        )

    def save(self, path: str | Path) -> None:
        """Write the circuit as a JSON file, whole or not at all, replacing one that is there.

        Raises:
            OutputError: The file cannot be written.
        """
        with new_file(Path(path), force=True) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a circuit that `save` wrote.

        Raises:
            NotACheckpointError: The file is missing, damaged, or no circuit of this version.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            found = (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
            if found != (FORMAT, VERSION):
                raise ValueError(f"format {found[0]!r}, version {found[1]!r}")
            return cls.from_dict(values)
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as fault:
            raise NotACheckpointError(
                str(path),
                expected=f"a circuit file ({FORMAT}, version {VERSION})",
                found=str(fault) if isinstance(fault, (OSError, ValueError)) else f"{type(fault).__name__}: {fault}",
                fix="Write it again with rlforget circuits find.",
            ) from fault


def head_count(size: int | float, total: int) -> int:
    """Return how many of `total` heads `size` asks for: a count, or a share as a float in [0, 1].

    Raises:
        ConfigError: It is out of range.
    """
    limit = 1.0 if isinstance(size, float) else total
    if isinstance(size, bool) or not 0 <= size <= limit:
        raise ConfigError(
            "size",
            expected=f"a number of heads up to {total}, or a share between 0.0 and 1.0",
            found=repr(size),
            fix="Write 25% as 0.25.",
        )
    return round(size * total) if isinstance(size, float) else size
