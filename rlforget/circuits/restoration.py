"""Repair of a circuit: chosen attention heads of a model get their slices back from its base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rlforget.circuits import metrics
from rlforget.circuits.finding import task_batches
from rlforget.circuits.forward import answer_logits, measuring
from rlforget.circuits.slices import Head, Heads, HeadSlice, HeadSlices
from rlforget.circuits.task import Task
from rlforget.domains import Domain, evaluate
from rlforget.errors import ConfigError, LayoutError
from rlforget.weights import Weights, WeightsLike, open_weights
from rlforget.weights.undo import SavedBits, Undo, all_or_nothing
from rlforget_kernels.common.bits import bits_dtype

Measure: TypeAlias = Domain | Task | Callable[[nn.Module], float]
"""What a repair is judged by: the mean sampled reward of a domain, the mean metric of a task, or any function of the
model of which more is better."""


@dataclass(frozen=True)
class RestorationReport:
    """What a restoration did.

    Attributes:
        heads: The heads that were chosen, in order.
        coordinates: Entries of their slices that were to be put back.
        written: Entries whose stored bits changed.
        shared: When a slice that several heads share went back: `all` or `any` of them chosen.
        left: Chosen heads of which a shared slice (keys, values, ...) stayed, because not all of its heads were chosen.
    """

    heads: tuple[Head, ...]
    coordinates: int
    written: int
    shared: str
    left: tuple[Head, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for programs."""
        return asdict(self)


class Restoration(Undo[RestorationReport]):
    """A restoration in a live model. Call it, or leave its `with` block, to put back the bits it found.

    It is the handle that `rf.rollback` returns, with another report. Undoing twice does nothing the second time.

    Attributes:
        report: What it did.
    """


def restore(model: nn.Module, base: WeightsLike, heads: Heads, *, shared: Literal["all", "any"] = "all") -> Restoration:
    """Put the slices of chosen attention heads back from the base, in place, bit for bit.

    A head's own slices are its rows of the query projection with their bias, and its columns of the output projection.
    A slice that several heads share (the keys and values of a group under grouped-query attention, the output bias,
    norms of queries and keys) goes back when all of its heads are chosen, so that no other head is touched; with
    `shared="any"`, when any is, so that a chosen head is the base's whole. All heads of a layer chosen, its attention
    is the base's. See `HeadSlices` for the layouts that are known.

    Nothing is written before every slice is found in the base, and a fault on the way puts all bits back. Weights tied
    between layers are written once.

    Args:
        model: A transformers causal language model, changed in place.
        base: Its base: a checkpoint folder or file, a module, or {name: tensor}.
        heads: A bool mask [layers, heads], or pairs (layer, head).
        shared: Whether all or any of a shared slice's heads must be chosen.

    Returns:
        The handle that undoes it: call it, or use it as a context manager. See `.report` for what was done.

    Raises:
        ConfigError: A head that the model does not have.
        LayoutError: The base has not these tensors in these shapes and dtypes, or the model's attention is of an
            unknown form.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    slices = HeadSlices(model)
    chosen = slices.heads(heads)
    by_tensor: defaultdict[str, list[HeadSlice]] = defaultdict(list)
    for band in slices.chosen(chosen, shared=shared):
        by_tensor[band.tensor].append(band)
    weights, source = open_weights(model), open_weights(base)
    names = {target: _name_in(source, weights, target, bands) for target, bands in by_tensor.items()}
    taken = {band for bands in by_tensor.values() for band in bands}
    left = sorted(head for head in chosen if not taken.issuperset(slices.of(head)))

    def write(saved: dict[str, SavedBits]) -> Restoration:
        coordinates = written = 0
        for target, bands in by_tensor.items():
            live, old = weights.tensor(target), source.tensor(names[target])
            found = live.clone()
            saved[target] = SavedBits.whole(found)
            for band in bands:
                _bits(band, live).copy_(_bits(band, old))
                coordinates += band.of(live).numel()
            saved[target], changed = SavedBits.changed(found, live)
            written += changed
        report = RestorationReport(tuple(sorted(chosen)), coordinates, written, shared, tuple(left))
        return Restoration(model, saved, report)

    return all_or_nothing(weights, write, lambda told, saved: told[0])


def _bits(band: HeadSlice, tensor: Tensor) -> Tensor:
    """Return the bits of a band, as a view of the tensor."""
    return band.of(tensor.detach().view(bits_dtype(tensor.dtype)))


def _name_in(source: Weights, weights: Weights, target: str, bands: Sequence[HeadSlice]) -> str:
    """Return the base's name of a tensor of the model, whose tied names must all mean the same there."""
    aliases = [target, *(alias for alias, canonical in weights.aliases.items() if canonical == target)]
    found = list(dict.fromkeys(source.canonical(name) for name in aliases if name in source))
    meta = weights.meta(target)
    other = next((str(source.meta(name)) for name in found if source.meta(name) != meta), None)
    if not found or other is not None:
        raise LayoutError(
            f"tensor {target!r} of {source.description}",
            expected=f"the model's {meta}",
            found=other or "no such tensor",
            fix="Give the base that the model was tuned from, in the model's dtype.",
        )
    first = source.tensor(found[0])
    for name in found[1:]:
        if not all(torch.equal(_bits(band, first), _bits(band, source.tensor(name))) for band in bands):
            raise LayoutError(
                f"tensor {target!r}",
                expected=f"{found[0]!r} and {name!r} alike in {source.description}, as the model ties them",
                found="different bits",
                fix="Untie the model's tensors first.",
            )
    return found[0]


@dataclass(frozen=True)
class RestorationEffect:
    """What restoring chosen heads did, beside as many random heads.

    Attributes:
        heads: The heads that were chosen.
        before: The measure of the model as it was.
        after: The measure with the chosen heads restored.
        random: The measure with as many random heads restored, one value a draw.
        everything: The measure with every head restored: what attention alone can give back.
        written: Entries that changed, for the chosen heads.
        random_written: The same for each draw: under grouped-query attention equal numbers of heads may not share
            equally many keys and values.
    """

    heads: tuple[Head, ...]
    before: float
    after: float
    random: tuple[float, ...]
    everything: float
    written: int
    random_written: tuple[int, ...]

    @property
    def p_value(self) -> float:
        """Share of draws, the chosen heads counted as one, that do at least as well; 1 where there is no draw."""
        return (1 + sum(value >= self.after for value in self.random)) / (1 + len(self.random))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the p-value, for programs."""
        return {**asdict(self), "p_value": self.p_value}


def restoration_effect(
    model: nn.Module,
    base: WeightsLike,
    heads: Heads,
    measure: Measure,
    *,
    tokenizer: Any = None,
    metric: str | metrics.Metric = "log_prob_difference",
    draws: int = 20,
    within_layers: bool = False,
    shared: Literal["all", "any"] = "all",
    samples: int = 256,
    seed: int = 0,
) -> RestorationEffect:
    """Measure what restoring chosen heads gives, beside equally many heads drawn at random. The model is left as it is.

    Args:
        model: A transformers causal language model.
        base: Its base, see `restore`.
        heads: A bool mask [layers, heads], or pairs (layer, head).
        measure: A domain, whose mean sampled reward on evaluation prompts is taken; a task, whose mean metric on its
            clean prompts is; or a function of the model, of which more is better.
        tokenizer: The model's; needed for a domain, and for a task of texts.
        metric: What a task's answers are scored by, see `rlforget.circuits.metrics`.
        draws: Number of random choices.
        within_layers: Draw as many heads in each layer as were chosen there, instead of anywhere.
        shared: See `restore`; used for the random heads alike.
        samples: Prompts of a domain.
        seed: Seed of the draws, and of the prompts and samples, which are the same each time.

    Raises:
        ConfigError: A head that the model does not have, no head, a domain without a tokenizer, or negative draws.
        LayoutError: See `restore`.
    """
    score = _score_of(model, measure, tokenizer, metric, samples, seed)
    slices = HeadSlices(model)
    chosen = tuple(sorted(slices.heads(heads)))
    if not chosen or draws < 0:
        raise ConfigError(
            "restoration_effect",
            expected="at least one head, and no negative number of draws",
            found=f"{len(chosen)} heads, {draws} draws",
            fix="Choose one head or more, as pairs of a layer and a head.",
        )

    def restored(some: Sequence[Head]) -> tuple[float, int]:
        with restore(model, base, some, shared=shared) as undo:
            return score(model), undo.written

    before = score(model)
    after, written = restored(chosen)
    generator = torch.Generator().manual_seed(seed)
    drawn = [restored(_random_heads(slices, chosen, within_layers, generator)) for _ in range(draws)]
    everything, _ = restored(slices.all_heads())
    return RestorationEffect(
        heads=chosen,
        before=before,
        after=after,
        random=tuple(value for value, _ in drawn),
        everything=everything,
        written=written,
        random_written=tuple(count for _, count in drawn),
    )


def _score_of(
    model: nn.Module, measure: Measure, tokenizer: Any, metric: str | metrics.Metric, samples: int, seed: int
) -> Callable[[nn.Module], float]:
    if isinstance(measure, Task):
        batches, score = task_batches(model, measure, tokenizer), metrics.get(metric)

        def of_task(model: nn.Module) -> float:
            with torch.no_grad(), measuring(model):
                values = [score(answer_logits(model, batch), batch) for batch in batches]
            return float(torch.cat(values).double().mean())

        return of_task
    if not isinstance(measure, Domain):
        return measure
    if tokenizer is None:
        raise ConfigError(
            f"domain {measure.name!r}", expected="a tokenizer", found="none", fix="Pass the model's tokenizer."
        )
    return lambda model: evaluate(model, tokenizer, measure, count=samples, seed=seed).mean


def _random_heads(
    slices: HeadSlices, chosen: Sequence[Head], within_layers: bool, generator: torch.Generator
) -> list[Head]:
    """Draw as many heads as were chosen, all different."""
    strata = [[head for head in slices.all_heads() if head[0] == layer] for layer in range(slices.shape[0])]
    pools = strata if within_layers else [slices.all_heads()]
    drawn: list[Head] = []
    for pool in pools:
        count = sum(head in chosen for head in pool)
        order = torch.randperm(len(pool), generator=generator).tolist()
        drawn += [pool[position] for position in order[:count]]
    return drawn
