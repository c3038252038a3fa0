"""Section "model": what is done to all of a model's tensors, resident on the device, beside torch tensor by tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

import rlforget as rf
from benchmarks.cases.conflict_score import peer as plain_scores
from benchmarks.cases.fingerprint import peer as plain_sum
from benchmarks.cases.model_diff import agree as same_changes
from benchmarks.cases.model_diff import changes, moments
from benchmarks.cases.patch import peer as plain_patch
from benchmarks.cases.subtract import stochastic
from benchmarks.compiled import torch_peers, torch_peers_of_each
from benchmarks.gpu.pair import Pair, pair, shape_on
from benchmarks.harness import Case, Cases, Machine
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.conflict_score import foreach_conflict_score
from rlforget_kernels.delta_stats import foreach_delta_stats
from rlforget_kernels.fingerprint import foreach_fingerprint
from rlforget_kernels.patch import foreach_patch_
from rlforget_kernels.rollback import foreach_rollback_
from rlforget_kernels.select_top import select_top
from rlforget_kernels.sparse_delta import foreach_sparse_delta
from rlforget_kernels.subtract import foreach_subtract_

SELECTED = 0.1
"""The share of the changed coordinates that is chosen."""

DAMPING = 0.1
CORRECTION = 1e-5
"""The largest entry of the correction: less than half a unit in the last place of most weights."""


class Setting:
    """A model before and after a change, what changed, scores of it, and what was chosen by them."""

    def __init__(self, weights: Pair) -> None:
        self.weights = weights
        self.before, self.after = weights.sides
        self.names = list(weights.after)
        self.indices, self.old, self.new = foreach_sparse_delta(self.before, self.after)
        device = self.after[0].device
        random = torch.Generator(device).manual_seed(1)
        self.earlier, self.later = (
            [torch.rand(len(where), generator=random, device=device) for where in self.indices] for _ in range(2)
        )
        self.values = [
            new.view(torch.bfloat16).float() - old.view(torch.bfloat16).float()
            for old, new in zip(self.old, self.new, strict=True)
        ]
        self.changed = sum(map(len, self.indices))
        self.count = int(SELECTED * self.changed)
        self.scores, self.histogram = self.score()
        self.picked = select_top(self.scores, self.count, self.histogram)

    def score(self) -> tuple[list[Tensor], Tensor]:
        return foreach_conflict_score(self.values, "two_fisher", self.earlier, self.later, [], DAMPING)

    def chosen(self, every: Iterable[Tensor]) -> list[Tensor]:
        """What stands at the chosen coordinates, of something known at all that changed."""
        return [one[picked] for one, picked in zip(every, self.picked, strict=True)]


@cache
def setting(machine: Machine) -> Setting:
    return Setting(pair(shape_on(machine), machine.device))


def comparison(
    ours: Callable[[list[Tensor], list[Tensor]], object], *peers: Callable[..., object]
) -> Callable[[Machine], Case]:
    """Return what makes the case of an operator that compares the two sides, beside peers for one tensor."""

    def make(machine: Machine) -> Case:
        at = setting(machine)
        found = 8 * at.changed if changes in peers else 0
        return Case(
            moved=2 * at.weights.nbytes + found,
            ours=lambda: ours(at.before, at.after),
            peers=torch_peers_of_each(peers, lambda: zip(at.before, at.after, strict=True)),
            agree=lambda: same_changes(at.before, at.after),
            ceiling="read",
            inputs=2 * at.weights.nbytes,
            notes={"torch": "over one tolerance, without histograms"} if moments in peers else {},
        )

    return make


def print_of_all(machine: Machine) -> Case:
    at = setting(machine)
    words = [(as_bits(weight).view(torch.int32),) for weight in at.after]
    return Case(
        moved=at.weights.nbytes,
        ours=lambda: foreach_fingerprint(at.after),
        peers=torch_peers_of_each([plain_sum], lambda: words),
        agree=lambda: not torch.equal(foreach_fingerprint(at.before), foreach_fingerprint(at.after)),
        ceiling="read",
        inputs=at.weights.nbytes,
        notes={"torch": "a plain sum, which is no fingerprint"},
    )


def scoring(machine: Machine) -> Case:
    at = setting(machine)
    columns = [one for one in zip(at.values, at.earlier, at.later, strict=True) if len(one[0])]

    def agree() -> bool:
        scores, histogram = at.score()
        theirs = [plain_scores(*one) for one in columns]
        longest = max(len(counts) for _, counts in theirs)
        total = sum(torch.nn.functional.pad(counts, (0, longest - len(counts))) for _, counts in theirs)
        ours = [score for score in scores if len(score)]
        return torch.equal(histogram, total) and all(map(torch.equal, ours, (score for score, _ in theirs)))

    return Case(
        moved=16 * at.changed,
        ours=at.score,
        peers=torch_peers_of_each([plain_scores], lambda: columns),
        agree=agree,
        inputs=12 * at.changed,
    )


def top_of_all(scores: list[Tensor], count: int) -> Tensor:
    return torch.cat(scores).topk(count, sorted=False).indices.sort().values


def selection(machine: Machine) -> Case:
    at = setting(machine)

    def agree() -> bool:
        together = torch.cat(at.scores)
        ours = torch.cat(at.chosen(at.scores)).sort().values
        return torch.equal(ours, together[top_of_all(at.scores, at.count)].sort().values)

    return Case(
        moved=8 * at.changed + 8 * at.count,
        ours=lambda: select_top(at.scores, at.count, at.histogram),
        peers=torch_peers(top_of_all, lambda: (at.scores, at.count)),
        agree=agree,
        ceiling="read",
        inputs=4 * at.changed,
    )


def plain_put(weight: Tensor, where: Tensor, bits: Tensor) -> None:
    weight.index_put_((where,), bits)


def putting_back(machine: Machine) -> Case:
    """Old bits at the chosen coordinates, and at the next call the new ones again."""
    at = setting(machine)
    where, old, new = (at.chosen(one) for one in (at.indices, at.old, at.new))
    weights, theirs = ([tensor.clone() for tensor in at.after] for _ in range(2))
    goals = itertools.cycle([[bits.view(torch.bfloat16) for bits in side] for side in (old, new)])
    flat, long = [as_bits(weight) for weight in theirs], [one.long() for one in where]
    their_goals = itertools.cycle([old, new])
    peers = torch_peers_of_each([plain_put], lambda: zip(flat, long, next(their_goals), strict=True))

    def ours() -> None:
        foreach_rollback_(weights, next(goals), where, [])

    return Case(
        moved=at.count * (4 + 2 + 2),
        ours=ours,
        peers=peers,
        agree=lambda: all(_same_after(ours, peers["torch"], weights, theirs) for _ in range(2)),
        inputs=at.count * (4 + 2),
    )


def undoing(machine: Machine) -> Case:
    """The bits held are checked before others are written; to and fro."""
    at = setting(machine)
    where, old, new = (at.chosen(one) for one in (at.indices, at.old, at.new))
    weights, theirs = ([tensor.clone() for tensor in at.after] for _ in range(2))
    sides, their_sides = (itertools.cycle([(new, old), (old, new)]) for _ in range(2))
    flat, long = [as_bits(weight) for weight in theirs], [one.long() for one in where]
    peers = torch_peers_of_each([plain_patch], lambda: zip(flat, long, *next(their_sides), strict=True))

    def ours() -> Tensor:
        return foreach_patch_(weights, where, *next(sides))

    return Case(
        moved=at.count * (4 + 3 * 2),
        ours=ours,
        peers=peers,
        agree=lambda: all(_same_after(ours, peers["torch"], weights, theirs) for _ in range(2)),
        inputs=at.count * (4 + 2 * 2),
    )


def correcting(machine: Machine) -> Case:
    """The write of a dense correction of all weights, rounded by chance."""
    at = setting(machine)
    random = torch.Generator(machine.device).manual_seed(2)
    us = [
        (torch.rand(weight.shape, generator=random, device=machine.device) - 0.5) * 2 * CORRECTION
        for weight in at.after
    ]
    weights, theirs = ([tensor.clone() for tensor in at.after] for _ in range(2))
    peers = torch_peers_of_each([stochastic], lambda: zip(theirs, us, strict=True))

    def ours() -> None:
        foreach_subtract_(weights, us, seed=3)

    def agree() -> bool:
        ours()
        peers["torch"]()
        # Drawn apart, two results may be neighbours.
        return all(torch.allclose(*pair, rtol=2**-6, atol=1e-4) for pair in zip(weights, theirs, strict=True))

    return Case(moved=8 * sum(u.numel() for u in us), ours=ours, peers=peers, agree=agree, inputs=3 * at.weights.nbytes)


def diff_to_host(machine: Machine) -> Case:
    at = setting(machine)

    def peer(before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.cpu() for part in changes(before, after))

    plain = torch_peers_of_each([peer], lambda: zip(at.before, at.after, strict=True))["torch"]
    return Case(
        moved=2 * at.weights.nbytes,
        ours=lambda: rf.diff(at.weights.before, at.weights.after),
        peers={"torch": plain},
        agree=lambda: rf.diff(at.weights.before, at.weights.after).changed == at.changed,
        ceiling="read",
        inputs=2 * at.weights.nbytes,
        notes={"torch": "no fingerprints, and nothing is checked"},
    )


def rollback_and_undo(machine: Machine) -> Case:
    at = setting(machine)
    delta = rf.diff(at.weights.before, at.weights.after)
    where = dict(zip(at.names, (one.cpu() for one in at.chosen(at.indices)), strict=True))
    coordinates = rf.Coordinates({name: one for name, one in where.items() if len(one)})
    weights = {name: tensor.clone() for name, tensor in at.weights.after.items()}
    patches = [
        (as_bits(weight), at_one.cpu(), old.cpu(), new.cpu())
        for weight, at_one, old, new in zip(
            weights.values(), at.chosen(at.indices), at.chosen(at.old), at.chosen(at.new), strict=True
        )
    ]

    def peer() -> None:
        for side in (2, 3):
            for patch in patches:
                bits, places = patch[0], patch[1].to(patch[0].device).long()
                bits[places] = patch[side].to(bits.device)

    def agree() -> bool:
        undo = rf.rollback(weights, delta, coordinates)
        written = rf.diff(weights, at.weights.after).changed
        undo()
        return written == at.count and not rf.diff(weights, at.weights.after).changed

    return Case(
        moved=0,
        ours=lambda: rf.rollback(weights, delta, coordinates)(),
        peers={"torch": peer},
        agree=agree,
        notes={"torch": "nothing is checked or kept"},
    )


def _same_after(
    ours: Callable[[], object], peer: Callable[[], object], mine: list[Tensor], theirs: list[Tensor]
) -> bool:
    ours()
    peer()
    return all(map(torch.equal, map(as_bits, mine), map(as_bits, theirs)))


def diff_and_stats(before: list[Tensor], after: list[Tensor]) -> object:
    return foreach_sparse_delta(before, after), foreach_delta_stats(before, after)


CASES: Cases = {
    ("model", name): make
    for name, make in {
        "diff and stats": comparison(diff_and_stats, changes, moments),
        "diff": comparison(foreach_sparse_delta, changes),
        "stats": comparison(foreach_delta_stats, moments),
        "fingerprint": print_of_all,
        "scores": scoring,
        "selection": selection,
        "rollback at coordinates": putting_back,
        "undo": undoing,
        "write of a dense correction": correcting,
        "rf.diff, into the host's memory": diff_to_host,
        "rf.rollback at coordinates, and its undo": rollback_and_undo,
    }.items()
}
