"""A delta as a low-rank adapter that PEFT loads, and how much of the change is in it.

PEFT (https://github.com/huggingface/peft) adds (alpha / r) · B · A to the weight of a linear layer; here alpha = r.
What an adapter has no room for (norms, embeddings, biases, packed experts) is left out and counted, or saved whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlforget.delta.exporting.changes import Changes, difference
from rlforget.delta.exporting.factors import Fit, factors, relative_error
from rlforget.delta.exporting.matrices import change_of
from rlforget.delta.exporting.modules import Place, places
from rlforget.delta.exporting.shards import bytes_of
from rlforget.delta.patching import DeltaLike
from rlforget.errors import ConfigError, ExportError
from rlforget.weights import TensorMeta, WeightsLike
from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import check_new_folder, new_folder
from rlforget.weights.safetensors_file import header_text
from rlforget.weights.source import CHUNK

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """How much of a change an adapter holds. Energies are squared Frobenius norms of after − before.

    Attributes:
        rank: As asked for; a matrix with a smaller side has that.
        dtype: What the factors are stored in.
        tensors: {name: how close its factors come}.
        saved: {name: energy} of the tensors that are saved whole, and so exact.
        left_out: {name: energy} of the changed tensors that are not in the adapter.
    """

    rank: int
    dtype: str
    tensors: dict[str, Fit]
    saved: dict[str, float]
    left_out: dict[str, float]

    @property
    def energy(self) -> float:
        """‖after − before‖² over all tensors."""
        return sum(fit.energy for fit in self.tensors.values()) + sum(self.saved.values()) + sum(self.left_out.values())

    @property
    def missed(self) -> float:
        """‖after − before − what the adapter adds‖² over all tensors."""
        return sum(fit.missed for fit in self.tensors.values()) + sum(self.left_out.values())

    @property
    def error(self) -> float:
        """The relative Frobenius error over all tensors, those that are left out included."""
        return relative_error(self.missed, self.energy)

    @property
    def kept(self) -> float:
        """The share of the energy that is kept, 1 − error²."""
        return 1.0 - self.error**2

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        fits = {
            name: {"rank": fit.rank, "energy": fit.energy, "error": fit.error, "kept": fit.kept}
            for name, fit in self.tensors.items()
        }
        whole = {"energy": self.energy, "error": self.error, "kept": self.kept}
        return {
            "rank": self.rank,
            "dtype": self.dtype,
            "total": whole,
            "tensors": fits,
            "saved": self.saved,
            "left_out": self.left_out,
        }

    def table(self) -> str:
        """Return the sums as text for people; what is not factored by name, with layers taken together."""
        lines = [
            f"{len(self.tensors):,} matrices as rank {self.rank}: {self.kept:.2%} of the change's energy kept, "
            f"relative error {self.error:.4g}",
        ]
        for what, energies in (("saved whole", self.saved), ("left out", self.left_out)):
            alike: dict[str, list[float]] = {}
            for name, energy in energies.items():
                alike.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(energy)
            for pattern, parts in alike.items():
                lines.append(f"{what}, {sum(parts) / (self.energy or 1.0):.3%} of the energy: {len(parts)} {pattern}")
        return "\n".join(lines)


def export_lora(
    delta: DeltaLike,
    path: str | PathLike[str],
    *,
    rank: int,
    base: WeightsLike | None = None,
    targets: Sequence[str] | None = None,
    save_rest: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Adapter:
    """Write the changes of linear layers as a PEFT adapter of rank `rank`, matrix by matrix.

    Each is cut by a randomised singular value decomposition, close to the best one of its rank; the same seed gives the
    same bits on one machine. Memory follows the largest matrix, not the model.

    Args:
        delta: A delta, its file, or the file's path.
        path: The folder to create, with `adapter_config.json` and `adapter_model.safetensors`.
        rank: At least 1; cut to a matrix's smaller side.
        base: The weights at either end: needed for a file that is not self-contained, and for `save_rest`. A folder
            with a config, or a live model, tells which tensors are of linear layers; without, names do.
        targets: Modules to adapt, by path or by the end of one, e.g. `q_proj`; None: every linear layer that changed.
        save_rest: Save what is not in the factors whole: biases, and the modules of norms and embeddings.
        dtype: Of the factors: float32, bfloat16, float16 or float64.
        seed: Of the decomposition.
        dry_run: Decompose and measure, and write nothing.
        force: Replace an adapter or checkpoint folder that is at `path`.
        progress: Told how many coordinates of changed tensors are done, and of how many.

    Raises:
        ExportError: No linear layer changed, a target is none, or a tensor was added, dropped, resized or retyped; or
            `save_rest` lacks its base.
        ConfigError: `rank` is below 1.
        NonFiniteError: A change is no finite number.
        DeltaFileError, WrongBaseError, LayoutError: As for `Delta.load`.
        OutputError: `path` exists and may not be replaced, or cannot be written.
    """
    if rank < 1:
        raise ConfigError("rank", expected="at least 1", found=str(rank), fix="Ask for 8, 16 or 64, say.")
    path, changes = Path(path), Changes(delta, base)
    changes.require_only_bits("an adapter")
    job = _Job(changes, _Plan.of(changes, base, targets, save_rest), rank, seed, dtype, progress)
    check_new_folder(path, force=force)
    if dry_run:
        job.measure()
    else:
        with new_folder(path, force=force, brings={WEIGHTS_FILE, CONFIG_FILE}) as folder:
            job.write(folder)
    return job.found


@dataclass(frozen=True)
class _Plan:
    """Which changed tensors go where.

    Attributes:
        factored: {name: its place} of the matrices.
        biases: {name: its place} of biases that are saved, if all of the rest is.
        modules: Paths of the modules that are saved whole.
        saved: {name: its place} of all tensors of these modules.
        left_out: Names of what is in none.
        tied: {further name: name} of saved embeddings that the model uses again, as its output layer.
    """

    factored: dict[str, Place]
    biases: dict[str, Place]
    modules: list[str]
    saved: dict[str, Place]
    left_out: list[str]
    tied: dict[str, str]

    @classmethod
    def of(cls, changes: Changes, base: WeightsLike | None, targets: Sequence[str] | None, save_rest: bool) -> _Plan:
        """Sort the changed tensors.

        Raises:
            ExportError: No linear layer is to be adapted, or a target is none.
        """
        found, tied = places(changes.metas, changes.aliases, base)
        linear = {name: found[name] for name in changes.changed if found[name].kind in ("linear", "transposed")}
        chosen = {name: place for name, place in linear.items() if _is_target(place.module, targets)}
        for target in targets or ():
            if not any(_is_target(place.module, [target]) for place in linear.values()):
                raise _nothing(
                    f"target {target!r}", "a linear layer that changed, by its path or the end of it", linear
                )
        if not chosen:
            raise _nothing("the delta", "a change of linear layers", {name: found[name] for name in changes.changed})
        others = {name: found[name] for name in changes.changed if name not in chosen}
        if not save_rest:
            return cls(chosen, {}, [], {}, list(others), {})
        changes.after()  # there has to be one
        adapted = {place.module for place in chosen.values()}
        biases = {name: place for name, place in others.items() if place.module in adapted}
        modules = {place.module: None for name, place in others.items() if name not in biases and place.module}
        saved = {name: place for name, place in found.items() if place.module in modules}
        kept = biases.keys() | saved.keys()
        again = {alias: name for alias, name in tied.items() if name in saved}
        modules |= dict.fromkeys(alias.rpartition(".")[0] for alias in again)
        return cls(chosen, biases, list(modules), saved, [name for name in others if name not in kept], again)


def _is_target(module: str, targets: Sequence[str] | None) -> bool:
    return targets is None or any(module == target or module.endswith(f".{target}") for target in targets)


def _nothing(what: str, expected: str, there: Iterable[str]) -> ExportError:
    names = list(there)
    found = f"{len(names)} others, e.g. {names[0]!r}" if names else "none"
    return ExportError(
        what, expected=expected, found=found, fix="Export a task vector, or `safetensors`, which hold all."
    )


class _Job:
    """One export: its sums, and the factors of the matrix that is being written."""

    def __init__(
        self, changes: Changes, plan: _Plan, rank: int, seed: int, dtype: torch.dtype, progress: Progress | None
    ) -> None:
        self._changes, self._plan, self._rank, self._seed, self._dtype = changes, plan, rank, seed, dtype
        self._progress, self._done = progress, 0
        self._held: tuple[str, dict[str, Tensor]] = ("", {})
        self.found = Adapter(rank, str(dtype).removeprefix("torch."), {}, {}, {})

    def measure(self) -> None:
        """Decompose every matrix, and sum the energies of all else."""
        for name in self._plan.factored:
            self._factored(name)
        self._measure_rest()

    def write(self, folder: Path) -> None:
        """Write the adapter's two files."""
        metas: dict[str, TensorMeta] = {}
        source: dict[str, tuple[str, str]] = {}
        for name, place in self._plan.factored.items():
            out, width = self._sides(name)
            rank = min(self._rank, out, width)
            for factor, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
                key = f"{_PREFIX}{place.module}.{factor}.weight"
                metas[key], source[key] = TensorMeta(self._dtype, shape), (name, factor)
        for name, place in (self._plan.biases | self._plan.saved).items():
            inside = "base_layer." if name in self._plan.biases else ""
            key = f"{_PREFIX}{place.module}.{inside}{place.parameter}"
            metas[key], source[key] = self._changes.metas[name], (name, "")
        for alias, name in self._plan.tied.items():
            metas[_PREFIX + alias], source[_PREFIX + alias] = self._changes.metas[name], (name, "")
        text, order = header_text(metas, {"format": "pt"})
        with open(folder / WEIGHTS_FILE, "xb") as file:
            file.write(text)
            for key in order:
                for part in self._parts(*source[key]):
                    file.write(bytes_of(part))
        self._measure_rest()
        (folder / CONFIG_FILE).write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")

    def _parts(self, name: str, factor: str) -> Iterator[Tensor]:
        if factor:
            yield self._factored(name)[factor].reshape(-1)
            return
        after, numel = self._changes.after(), self._changes.metas[name].numel
        for start in range(0, numel, CHUNK):
            yield after.bits(self._changes.delta.name_after(name), start, min(start + CHUNK, numel))

    def _sides(self, name: str) -> tuple[int, int]:
        """Return (out, in) of a linear layer's weight."""
        sides = self._changes.metas[name].shape
        out, width = sides if self._plan.factored[name].kind == "linear" else sides[::-1]
        return out, width

    def _factored(self, name: str) -> dict[str, Tensor]:
        """Return a matrix's two factors; those of the last one are kept, for they are written one after the other."""
        if self._held[0] != name:
            meta, count = self._changes.metas[name], self._changes.changed[name]
            change = change_of(meta, count, self._changes.pieces(name))
            left, right, fit = factors(change, self._rank, seed=self._seed, dtype=self._dtype)
            if self._plan.factored[name].kind == "transposed":
                left, right = right.mT.contiguous(), left.mT.contiguous()
            self._held = name, {"lora_A": right, "lora_B": left}
            self.found.tensors[name] = fit
            self._tell(count)
        return self._held[1]

    def _measure_rest(self) -> None:
        """Sum the energies of what is not factored, and put the matrices in the model's order."""
        for name in self._changes.changed:
            if name in self._plan.factored:
                self.found.tensors[name] = self.found.tensors.pop(name)
                continue
            home = self.found.left_out if name in self._plan.left_out else self.found.saved
            home[name] = self._energy(name)
            self._tell(self._changes.changed[name])

    def _energy(self, name: str) -> float:
        if not self._changes.metas[name].dtype.is_floating_point:
            return 0.0
        return sum(float(difference(piece).double().square().sum()) for piece in self._changes.pieces(name))

    def _tell(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, sum(self._changes.changed.values()))

    def _config(self) -> dict[str, Any]:
        """Return what PEFT's `LoraConfig` reads."""
        plan, base = self._plan, self._changes.base_path
        ranks = {place.module: min(self._rank, *self._sides(name)) for name, place in plan.factored.items()}
        smaller = {module: rank for module, rank in ranks.items() if rank != self._rank}
        tying = {"ensure_weight_tying": True} if plan.tied else {}  # a key that older versions of PEFT do not know
        return tying | {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None if base is None else str(base),
            "inference_mode": True,
            "r": self._rank,
            "lora_alpha": self._rank,
            "lora_dropout": 0.0,
            "bias": "lora_only" if plan.biases else "none",
            "fan_in_fan_out": any(place.kind == "transposed" for place in plan.factored.values()),
            "target_modules": list(ranks),
            "rank_pattern": smaller,
            "alpha_pattern": smaller,
            "modules_to_save": plan.modules or None,
            "init_lora_weights": True,
            "use_dora": False,
            "use_rslora": False,
        }
