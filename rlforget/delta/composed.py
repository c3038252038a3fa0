"""Weights and a chain of deltas over them, composed while they are read: no stage between is ever written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rlforget.delta.layers import Layer
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.delta.whole import file_content, file_size
from rlforget.errors import RlforgetError, WrongBaseError
from rlforget.weights import Layout, TensorMeta, Weights, pair_up
from rlforget.weights.ahead import Progress
from rlforget.weights.buffers import buffer
from rlforget.weights.digest import lanes_of
from rlforget.weights.opening import Checkpoint
from rlforget.weights.saving import Check, Placed, checked_parts, save_like
from rlforget_kernels.common.bits import bits_dtype

BASE = -1
"""What stands for the base where the number of a layer could stand."""


@dataclass(frozen=True)
class Step:
    """One point in the making of a tensor: where its bits begin, or a layer that changes some of them.

    Attributes:
        number: The layer's place in the chain; -1: the base.
        name: What the layer, or the base, calls the tensor.
    """

    number: int
    name: str


@dataclass(frozen=True)
class _Track:
    """How a tensor comes about: where its bits begin, and which layers change them.

    Attributes:
        meta: Its dtype and shape.
        base: Its name in the base, whose slot in a checkpoint it takes; None: it came later.
        origin: Where it came into being: the base, or the layer that added it.
        steps: The base or the layer that brought its bits as a whole, then the layers that change coordinates of it.
        lanes: Its fingerprint at the end, where a layer tells it.
        sure: Whether a wrong base shows without a look at `lanes`.
    """

    meta: TensorMeta
    base: str | None
    origin: Step
    steps: tuple[Step, ...]
    lanes: Fingerprint | None = None
    sure: bool = True


class ComposedWeights(Weights):
    """What weights become under a chain of deltas, range by range as they are read.

    A layer that knows the old bits checks them as it meets them. One that knows steps alone cannot: `check` gives the
    fingerprints that tell, and `save` holds what it writes against them.

    Args:
        base: The weights before the first layer.
        layers: The deltas, each of which begins where the one before ends.

    Raises:
        LayoutError: A delta is for other tensors.
    """

    def __init__(self, base: Weights, layers: Sequence[Layer]) -> None:
        self.base, self._layers = base, list(layers)
        layout: Layout = base
        self._tracks = {
            name: _Track(base.meta(name), name, Step(BASE, name), (Step(BASE, name),)) for name in base.names()
        }
        for number, layer in enumerate(self._layers):
            self._tracks, aliases = _followed(self._tracks, layout, layer, number)
            metas = {name: track.meta for name, track in self._tracks.items()}
            layout = Layout(f"{base.description} and {layer.description}", metas, aliases)
        super().__init__(layout.description, {name: layout.meta(name) for name in layout.names()}, layout.aliases)

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor, in memory of its own; aliases are accepted."""
        meta = self.meta(name)
        return self.bits(name).clone().view(meta.dtype).view(meta.shape)

    def bits(self, name: str, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Compose a range of a tensor; see `Weights.bits`.

        Raises:
            WrongBaseError: The base does not hold the bits that a delta expects.
        """
        meta = self.meta(name)
        stop = meta.numel if stop is None else stop
        if out is None:
            out = buffer(stop - start, bits_dtype(meta.dtype))
        for _ in self.making(name, start, stop, out):
            pass
        return out

    def steps(self, name: str) -> tuple[Step, ...]:
        """Return how a tensor comes about; aliases are accepted.

        Returns:
            First the base, or the layer that brought the tensor as a whole; then the layers that change some of its
            coordinates, in order.
        """
        return self._tracks[self.canonical(name)].steps

    def making(self, name: str, start: int, stop: int, out: Tensor) -> Iterator[Step]:
        """Compose a range of a tensor step by step: after each one that is yielded, `out` holds the bits it made.

        Args:
            name: The tensor; aliases are accepted.
            start: Row-major flat index of the first coordinate.
            stop: Index after the last one.
            out: 1-D, contiguous, on the CPU, `stop - start` integers of the dtype's width.

        Raises:
            WrongBaseError: The base does not hold the bits that a delta expects.
        """
        first, *others = self.steps(name)
        if first.number == BASE:
            self.base.bits(first.name, start, stop, out)
        else:
            out.copy_(self._layers[first.number].whole_bits(first.name, start, stop))
        yield first
        for step in others:
            self._layers[step.number].change_(step.name, start, stop, out)
            yield step

    def origins(self) -> dict[str, tuple[Layer | None, str]]:
        """Return, for each tensor, the layer that added it (None: the base has it), and what it is called there.

        A tensor that is renamed, resized or retyped stays the same.
        """
        origins = {name: track.origin for name, track in self._tracks.items()}
        return {
            name: (None if origin.number == BASE else self._layers[origin.number], origin.name)
            for name, origin in origins.items()
        }

    def slots(self) -> dict[str, str | None]:
        """Return, for each tensor, the name in the base of the tensor whose place in a checkpoint it takes."""
        return {name: track.base for name, track in self._tracks.items()}

    def changed_files(self) -> set[str]:
        """Return the names of the files that are no weights and that a layer changes."""
        return {name for layer in self._layers for name in layer.file_sizes()}

    def files(self) -> Mapping[str, Path | bytes] | None:
        """Return the files that are no weights, after the last layer; None where the base is no folder.

        Raises:
            WrongBaseError: One is not as a delta expects it.
        """
        base = self.base.files()
        if base is None:
            return None
        found = dict(base)
        for layer in self._layers:
            for name, (size, _) in layer.file_sizes().items():
                held = found.pop(name, None)
                if file_size(held) != size:  # nothing is decoded to find that
                    raise self._wrong_file(name, held, size)
                before, after = layer.file(name)
                if file_content(held) != before:
                    raise self._wrong_file(name, held, size)
                if after is not None:
                    found[name] = after
        return found

    def check(self, *, all_tensors: bool = False) -> Check:
        """Return what the composed tensors must be.

        Args:
            all_tensors: Also those that no layer changes; otherwise those alone where a wrong base would not show.
        """
        lanes = {
            name: track.lanes
            for name, track in self._tracks.items()
            if track.lanes is not None and (all_tensors or not track.sure)
        }
        return Check(lanes, self._fault)

    def verify(self, *, all_tensors: bool = False) -> None:
        """Read everything that `save` would write, and check it likewise, without writing.

        Raises:
            WrongBaseError: The base is not the one that the deltas were made from.
        """
        self.files()
        check = self.check(all_tensors=all_tensors)
        changed = [name for name, track in self._tracks.items() if len(track.steps) > 1 or name in check.lanes]
        for _ in checked_parts(self, changed, check):
            pass

    def save(
        self, path: Path, *, all_tensors: bool = False, force: bool = False, progress: Progress | None = None
    ) -> None:
        """Write the composed weights as a checkpoint in the shape of the base, in one pass and in bounded memory.

        Ranks may split the work; see `rlforget.weights.split`.

        Args:
            path: The folder to create, or the file where the base is a file.
            all_tensors: Check every tensor's fingerprint; otherwise where a wrong base would not show.
            force: Replace a checkpoint that is at `path`.
            progress: Told how many coordinates were written.

        Raises:
            WrongBaseError: The base is not the one that the deltas were made from.
            OutputError: `path` exists and may not be replaced, or it cannot be written.
        """
        assert isinstance(self.base, Checkpoint)  # what has a shape on disk
        placed = [Placed(name, name, track.base) for name, track in self._tracks.items()]
        check, files = self.check(all_tensors=all_tensors), self.files() or {}
        save_like(
            path, self.base, self, placed, files, aliases=self.aliases, check=check, force=force, progress=progress
        )

    def _wrong_file(self, name: str, held: Path | bytes | None, size: int | None) -> WrongBaseError:
        return WrongBaseError(
            f"{self.base.description}, file {name!r}",
            expected="the bytes that the delta was made from" if size is not None else "no such file",
            found="none" if held is None else "other bytes",
            fix="Take the folder that the delta was made from, or apply to its weights file alone.",
        )

    def _fault(self, name: str) -> RlforgetError:
        track = self._tracks[name]
        first = track.steps[0]
        done = first.number == BASE and lanes_of(self.base, first.name) == track.lanes
        return WrongBaseError(
            f"{self.base.description}, tensor {name!r}",
            expected="the bits that the change starts from",
            found="those that it leads to" if done else "others, told by their fingerprint",
            fix="It is there already: nothing is left to do."
            if done
            else "Take the weights that the delta was made from.",
        )


def _followed(
    tracks: Mapping[str, _Track], layout: Layout, layer: Layer, number: int
) -> tuple[dict[str, _Track], dict[str, str]]:
    """Return the tracks after one more layer, and the aliases of their names."""
    tracks, names = _untied(tracks, layout, layer)
    found: dict[str, _Track] = {}
    called: dict[str, str] = {}
    for name, track in tracks.items():
        new_name = layer.renamed.get(names[name], name)
        new = _next(track, layer, Step(number, names[name]), layer.renamed.get(names[name], names[name]))
        if new is not None:
            found[new_name], called[name] = new, new_name
    for name in layer.after.names():
        if name not in layer.before and name not in found:
            step = Step(number, name)
            found[name] = _Track(layer.after.meta(name), None, step, (step,), layer.lanes(name)[1], sure=False)
    aliases = {alias: called[name] for alias, name in layout.aliases.items() if name in called}
    aliases |= {alias: name for alias, name in layer.after.aliases.items() if name in found}
    return found, {alias: name for alias, name in aliases.items() if alias not in found}


def _untied(tracks: Mapping[str, _Track], layout: Layout, layer: Layer) -> tuple[dict[str, _Track], dict[str, str]]:
    """Give a tensor that the layer changes apart under two names a track for each.

    Returns:
        The tracks, and what the layer calls each of them.
    """
    found = dict(tracks)
    names: dict[str, str] = {}
    for pair in pair_up(layer.before, layout):
        known = names.setdefault(pair.after, pair.before)
        if known != pair.before and layer.lanes(known) != layer.lanes(pair.before):
            # By the name that is an alias so far: the other one keeps the slot in the checkpoint.
            own = pair.before if pair.before not in tracks else known
            found[own] = replace(tracks[pair.after], base=None)
            names[own] = own
            names[pair.after] = known if own == pair.before else pair.before
    return found, names


def _next(track: _Track, layer: Layer, step: Step, name_after: str) -> _Track | None:
    """Return a tensor's track after one more layer; None where it is no more."""
    lanes = layer.lanes(step.name)[1]
    if not layer.kept(step.name):
        if lanes is None:
            return None
        return replace(track, meta=layer.after.meta(name_after), steps=(step,), lanes=lanes, sure=False)
    if not layer.changed(step.name):
        return replace(track, lanes=lanes)
    return replace(track, steps=(*track.steps, step), lanes=lanes, sure=track.sure and layer.checks_bits)
