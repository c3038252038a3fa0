"""A delta: all that changed between two sets of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING

from torch import Tensor

from rlforget.delta.sharded import totals
from rlforget.delta.sides import WholeMetas, after_side, before_side, fault_in_names
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.delta.whole import FileDelta, WholeDelta
from rlforget.errors import LayoutError, UnknownNameError
from rlforget.weights import Layout, TensorMeta, WeightsLike
from rlforget.weights.digest import digest
from rlforget.weights.sharding import Sharding

if TYPE_CHECKING:
    from rlforget.delta.stats import DeltaStats


class Delta(Mapping[str, TensorDelta]):
    """What changed between two sets of weights, in memory and with the bits of both sides.

    It is a mapping over the tensors that kept their shape and dtype, in order; unchanged ones are empty. Looking a
    tensor up by a tied name works too.

    Args:
        tensors: One entry for each tensor that is on both sides with one shape and dtype.
        whole: The other tensors: on one side alone, resized or retyped.
        files: The files of a checkpoint folder that are no weights and changed.
        renamed: {name before: name after}, for tensors that are not called the same. Everything else in a delta calls
            a tensor by its name before, where it had one.
        aliases: Further names of tied tensors, with the names they stand for.
        metadata: Strings that travel with the delta, e.g. the domain it was trained on.
        sharding: Of a model that is spread over ranks, by the delta's names, what lies on this one: each rank's delta
            then has the coordinates that it holds, by their indices in the whole tensors, and every rank has to make
            it. Counts, shapes and fingerprints are of the whole.

    Attributes:
        counts: {name: how many coordinates of the tensor changed}, on all ranks.

    Raises:
        LayoutError: Two tensors go by one name, before or after.
    """

    def __init__(
        self,
        tensors: Iterable[TensorDelta],
        *,
        whole: Iterable[WholeDelta] = (),
        files: Iterable[FileDelta] = (),
        renamed: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        kept, others = list(tensors), list(whole)
        self._tensors = {tensor.name: tensor for tensor in kept}
        self.whole: dict[str, WholeDelta] = {tensor.name: tensor for tensor in others}
        self.files: dict[str, FileDelta] = {file.name: file for file in files}
        self.renamed: dict[str, str] = dict(renamed or {})
        self.aliases: dict[str, str] = dict(aliases or {})
        self.metadata: dict[str, str] = dict(metadata or {})
        fault = fault_in_names([t.name for t in kept], self._metas()[1], self.renamed)
        if fault is None and len(others) > len(self.whole):
            fault = "one tensor twice"
        if fault is not None:
            raise LayoutError(
                "a delta",
                expected="tensors that each go by one name before and one after",
                found=fault,
                fix="Make two deltas of it: first drop or add, then rename.",
            )
        self.sharding = sharding
        here = {name: tensor.changed for name, tensor in self._tensors.items()}
        self.counts: dict[str, int] = here if sharding is None else totals(sharding, here)

    def __getitem__(self, name: str) -> TensorDelta:
        """Return what changed in a tensor.

        Raises:
            UnknownNameError: There is no such tensor, or it changed as a whole: see `whole`.
        """
        canonical = self.aliases.get(name, name)
        if canonical not in self._tensors:
            as_a_whole = canonical in self.whole
            raise UnknownNameError(
                f"tensor {name!r}",
                expected=f"one of the delta's {len(self)} tensors that kept their shape and dtype",
                found="a tensor that did not" if as_a_whole else "no tensor of that name",
                fix="Look it up in .whole." if as_a_whole else "List the names by iterating over the delta.",
            )
        return self._tensors[canonical]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, bit for bit, metadata apart."""
        if not isinstance(other, Delta):
            return NotImplemented
        mine, others = ((d._tensors, d.whole, d.files, d.renamed, d.aliases) for d in (self, other))
        return mine == others

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        whole = f", {len(self.whole)} tensors as a whole" if self.whole else ""
        files = f", {len(self.files)} files" if self.files else ""
        return f"Delta({len(self)} tensors, {self.changed} of {self.numel} coordinates changed{whole}{files})"

    @property
    def changed(self) -> int:
        """The number of coordinates whose bits differ, in tensors that kept their shape and dtype."""
        return sum(self.counts.values())

    @property
    def numel(self) -> int:
        """The number of coordinates of those tensors; tied ones count once."""
        return sum(tensor.numel for tensor in self.values())

    @property
    def sparsity(self) -> float:
        """The share of coordinates whose bits are the same; 1 where there are none."""
        return 1.0 - self.changed / self.numel if self.numel else 1.0

    @property
    def empty(self) -> bool:
        """Whether nothing changed at all."""
        return not (self.changed or self.whole or self.files or self.renamed)

    @property
    def layout(self) -> Layout:
        """Names, dtypes and shapes of the tensors that kept them."""
        return Layout("the delta", {name: TensorMeta(t.dtype, t.shape) for name, t in self.items()}, self.aliases)

    @property
    def layout_before(self) -> Layout:
        """Names, dtypes and shapes of all tensors before."""
        return before_side(*self._metas(), self.aliases)

    @property
    def layout_after(self) -> Layout:
        """Names, dtypes and shapes of all tensors after, as they are called then."""
        return after_side(*self._metas(), self.aliases, self.renamed)

    def _metas(self) -> tuple[dict[str, TensorMeta], WholeMetas]:
        kept = {name: TensorMeta(tensor.dtype, tensor.shape) for name, tensor in self.items()}
        return kept, {name: (tensor.meta_before, tensor.meta_after) for name, tensor in self.whole.items()}

    @property
    def fingerprint_before(self) -> str:
        """Digest of all weights before; see `rlforget.weights.digest`."""
        lanes: dict[str, Fingerprint | None] = {name: t.fingerprint_before for name, t in self.items()}
        lanes |= {name: t.fingerprint_before for name, t in self.whole.items()}
        return _digest(self.layout_before, lanes)

    @property
    def fingerprint_after(self) -> str:
        """Digest of all weights after."""
        lanes: dict[str, Fingerprint | None] = {self.name_after(n): t.fingerprint_after for n, t in self.items()}
        lanes |= {self.name_after(name): t.fingerprint_after for name, t in self.whole.items()}
        return _digest(self.layout_after, lanes)

    def name_after(self, name: str) -> str:
        """Return what a tensor that was called `name` before is called after."""
        return self.renamed.get(name, name)

    def places(self, name: str) -> Tensor:
        """Return where the changed coordinates of a tensor stand in what of it is in memory here: int64 flat indices.

        Of a whole tensor these are its indices; of one that is spread over ranks, those in this rank's block.
        """
        indices = self[name].indices
        return indices.long() if self.sharding is None else self.sharding.boxes[name].to_block(indices)

    def sharded(self, weights: WeightsLike) -> Delta:
        """Return what of a whole delta, the same on every rank, lies on this one. Every rank has to call this.

        Args:
            weights: The weights at either end, spread over the ranks.

        Raises:
            LayoutError: It is for other tensors, or changes shapes, dtypes or names.
        """
        from rlforget.delta.sharded import sharded

        return sharded(self, weights)

    def invert(self) -> Delta:
        """Return the delta that leads back."""
        from rlforget.delta.algebra import invert

        return invert(self)

    def then(self, later: Delta) -> Delta:
        """Return this change and then a later one, as one delta: what `diff` would find between their outer ends.

        Raises:
            WrongBaseError: The later one does not begin where this one ends.
            LayoutError: It is for other tensors.
        """
        from rlforget.delta.algebra import then

        return then(self, later)

    def restrict(self, to: Mapping[str, Tensor] | Iterable[str]) -> Delta:
        """Return a part of the change; what is left out stays as it was before. Carried files are left out.

        Args:
            to: Names of tensors, which keep all of their change; or flat indices by tensor name, each a coordinate that
                changed (`rf.Coordinates`, for one).

        Raises:
            UnknownNameError: There is no such tensor.
            CoordinateError: The delta did not change a coordinate.
        """
        from rlforget.delta.algebra import restrict

        return restrict(self, to)

    @staticmethod
    def sum(deltas: Iterable[Delta]) -> Delta:
        """Return several changes of the same weights, no two of the same coordinate, as one delta.

        Raises:
            WrongBaseError: They begin at different weights.
            CoordinateError: Two of them change one coordinate, tensor or file.
        """
        from rlforget.delta.algebra import add

        return add(deltas)

    def stats(self) -> DeltaStats:
        """Measure the delta: sparsity, norms and steps, per tensor and in total."""
        from rlforget.delta.stats import measure

        return measure(self)

    def save(self, path: str | PathLike[str], *, self_contained: bool = False, force: bool = False) -> None:
        """Write the delta to a safetensors file, whole or not at all; of one that is spread over ranks, the first does.

        Args:
            path: The file, by custom `NAME.delta.safetensors`.
            self_contained: Let the bits from before travel too, so that the file can be read without the weights at
                either end. It is about twice as large then.
            force: Replace a file that is there.

        Raises:
            OutputError: The file exists, or cannot be written.
            DeltaFileError: It carries files that are too large.
        """
        from rlforget.delta.file import save

        save(self, path, self_contained=self_contained, force=force)

    @classmethod
    def load(cls, path: str | PathLike[str], base: WeightsLike | None = None, *, max_bytes: int | None = None) -> Delta:
        """Read a delta from its file and check all of it.

        Args:
            path: The file.
            base: The weights at either end of the delta. A file holds steps from the one to the other; the bits come
                from there. Not needed if the file is self-contained. Of weights that are spread over ranks, every rank
                calls this and gets what lies there.
            max_bytes: How many bytes of memory the delta may take. None: 384 MiB, or 96 times the size of its file, so
                that a small file from a stranger cannot take it all; raise it for a file that you trust.

        Raises:
            DeltaFileError: The file is missing, truncated, forged, of another format, too large, or needs `base`.
            WrongBaseError: `base` is at neither end.
            LayoutError: `base` has other tensors.
        """
        from rlforget.delta.file import load

        return load(path, base, max_bytes=max_bytes)


def _digest(layout: Layout, lanes: Mapping[str, Fingerprint | None]) -> str:
    known = {name: found for name, found in lanes.items() if found is not None}
    return digest({name: (layout.meta(name), known[name]) for name in layout.names()})
