"""Every operator beside its plain-torch equivalent, in bytes it must move a second.

A case is timed only after its result has been held against torch's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.conftest import ROWS, Machine, seconds
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.fingerprint import fingerprint
from rlforget_kernels.fisher_accumulate import fisher_accumulate_
from rlforget_kernels.patch import patch_
from rlforget_kernels.rollback import rollback_
from rlforget_kernels.select_top import select_top
from rlforget_kernels.sparse_delta import sparse_delta
from rlforget_kernels.subtract import subtract_


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        moved: The fewest bytes that the task moves.
        ours: The operator.
        peer: The same in plain torch.
        agree: Whether both give the same, run once before anything is timed.
        reads: Whether the task reads nearly all it moves, so that reading, not copying, is its ceiling.
    """

    moved: int
    ours: Callable[[], object]
    peer: Callable[[], object]
    agree: Callable[[], bool]
    reads: bool = False


def changed_pair(machine: Machine, share: float) -> tuple[Tensor, Tensor]:
    """bfloat16 weights before and after a change of `share` of them."""
    random = torch.Generator(machine.device).manual_seed(0)
    options = {"generator": random, "device": machine.device}
    before = torch.randn(machine.elements, **options).bfloat16()
    chosen = torch.rand(machine.elements, **options) < share
    return before, (before.view(torch.int16) ^ chosen.to(torch.int16)).view(torch.bfloat16)


def floats(machine: Machine, count: int = 1) -> list[Tensor]:
    """`count` positive float32 tensors."""
    random = torch.Generator(machine.device).manual_seed(1)
    return [torch.rand(machine.elements, generator=random, device=machine.device) for _ in range(count)]


def sparse_delta_case(machine: Machine, share: float) -> Case:
    before, after = changed_pair(machine, share)
    old, new = as_bits(before), as_bits(after)

    def peer() -> tuple[Tensor, Tensor, Tensor]:
        where = (old != new).nonzero().squeeze(1)
        return where, old[where], new[where]

    def agree() -> bool:
        ours = sparse_delta(before, after)
        return all(torch.equal(part.long(), theirs.long()) for part, theirs in zip(ours, peer(), strict=True))

    moved = 4 * machine.elements + 8 * len(peer()[0])
    return Case(moved, lambda: sparse_delta(before, after), peer, agree, reads=True)


def patch_case(machine: Machine, share: float) -> Case:
    before, after = changed_pair(machine, share)
    indices, old, new = sparse_delta(before, after)
    weight, theirs = before.clone(), as_bits(before).clone()
    sides = itertools.cycle([(old, new), (new, old)])
    their_sides = itertools.cycle([(old, new), (new, old)])
    where = indices.long()

    def peer() -> None:
        expected, written = next(their_sides)
        if torch.equal(theirs[where], expected):
            theirs[where] = written

    def agree() -> bool:
        for _ in range(2):
            patch_(weight, indices, *next(sides))
            peer()
        return torch.equal(as_bits(weight), theirs)

    return Case(len(indices) * 10, lambda: patch_(weight, indices, *next(sides)), peer, agree)


def fingerprint_case(machine: Machine) -> Case:
    before, after = changed_pair(machine, 1e-6)
    words = before.view(torch.int32)
    return Case(
        moved=2 * machine.elements,
        ours=lambda: fingerprint(before),
        peer=lambda: words.sum(),  # a sum is no fingerprint: it is the cheapest pass torch has
        agree=lambda: not torch.equal(fingerprint(before), fingerprint(after)),
        reads=True,
    )


def fisher_accumulate_case(machine: Machine, dtype: torch.dtype) -> Case:
    fisher, gradient = floats(machine, 2)
    gradient = gradient.to(dtype)
    theirs = fisher.clone()

    def agree() -> bool:
        fisher_accumulate_(fisher, gradient)
        return torch.equal(fisher, theirs.add_(gradient.float().square_()))

    return Case(
        moved=machine.elements * (8 + dtype.itemsize),
        ours=lambda: fisher_accumulate_(fisher, gradient),
        peer=lambda: theirs.add_(gradient.float().square_()),
        agree=agree,
    )


def two_fisher_case(machine: Machine) -> Case:
    delta, earlier, later = floats(machine, 3)

    def ours() -> tuple[Tensor, Tensor]:
        return conflict_score(delta, "two_fisher", earlier, later, damping=0.1)

    def peer() -> tuple[Tensor, Tensor]:
        score = earlier * delta * delta / (later + 0.1)
        return score, torch.bincount(score.view(torch.int32) >> 16, minlength=1 << 15)

    return Case(16 * machine.elements, ours, peer, lambda: all(map(torch.equal, ours(), peer())))


def select_top_case(machine: Machine, share: float) -> Case:
    (score,) = floats(machine)
    score *= score
    count = int(share * machine.elements)

    def peer() -> Tensor:
        return score.topk(count, sorted=False).indices.sort().values

    def agree() -> bool:
        (ours,) = select_top([score], count)
        return len(ours) == count and torch.equal(score[ours].sort().values, score[peer()].sort().values)

    return Case(8 * machine.elements + 8 * count, lambda: select_top([score], count), peer, agree, reads=True)


def rollback_case(machine: Machine, share: float) -> Case:
    before, after = changed_pair(machine, share)
    weight, theirs = after.clone(), after.clone()
    goals, their_goals = itertools.cycle([before, after]), itertools.cycle([before, after])

    def peer() -> None:
        goal = next(their_goals).float()
        now = theirs.float()
        theirs.copy_(now - 0.5 * (now - goal))

    def agree() -> bool:
        rollback_(weight, next(goals), strength=0.5)
        peer()
        return torch.equal(weight, theirs)

    return Case(
        moved=4 * machine.elements + 2 * int(share * machine.elements),
        ours=lambda: rollback_(weight, next(goals), strength=0.5),
        peer=peer,
        agree=agree,
        reads=True,
    )


def subtract_case(machine: Machine, seed: int | None) -> Case:
    (u,) = floats(machine)
    weight = changed_pair(machine, 0)[0]
    theirs = weight.clone()
    changes, their_changes = itertools.cycle([u, -u]), itertools.cycle([u, -u])

    def peer() -> None:
        difference = theirs.float() - next(their_changes)
        if seed is not None:
            noise = torch.randint(0, 1 << 16, difference.shape, dtype=torch.int32, device=machine.device)
            difference = (difference.view(torch.int32) + noise & -(1 << 16)).view(torch.float32)
        theirs.copy_(difference)

    def agree() -> bool:
        subtract_(weight, next(changes), seed)
        peer()
        # Drawn apart, two results may be neighbours.
        return torch.equal(weight, theirs) if seed is None else torch.allclose(weight, theirs, rtol=2**-6, atol=1e-3)

    return Case(8 * machine.elements, lambda: subtract_(weight, next(changes), seed), peer, agree)


CASES: dict[tuple[str, str], Callable[[Machine], Case]] = {
    ("sparse_delta", "bfloat16, 0.2% changed"): lambda machine: sparse_delta_case(machine, 0.002),
    ("sparse_delta", "bfloat16, 5% changed"): lambda machine: sparse_delta_case(machine, 0.05),
    ("patch_", "bfloat16, 5% changed"): lambda machine: patch_case(machine, 0.05),
    ("fingerprint", "bfloat16"): fingerprint_case,
    ("fisher_accumulate_", "float32"): lambda machine: fisher_accumulate_case(machine, torch.float32),
    ("fisher_accumulate_", "bfloat16"): lambda machine: fisher_accumulate_case(machine, torch.bfloat16),
    ("conflict_score", "two_fisher"): two_fisher_case,
    ("select_top", "2%"): lambda machine: select_top_case(machine, 0.02),
    ("rollback_", "bfloat16, half way, 5% changed"): lambda machine: rollback_case(machine, 0.05),
    ("subtract_", "bfloat16, nearest"): lambda machine: subtract_case(machine, None),
    ("subtract_", "bfloat16, stochastic"): lambda machine: subtract_case(machine, 3),
}


@pytest.mark.parametrize(("operator", "name"), CASES, ids=map(" ".join, CASES))
@pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=False)
def test_operator(
    benchmark: BenchmarkFixture, machine: Machine, operator: str, name: str, request: pytest.FixtureRequest
):
    case = CASES[operator, name](machine)
    assert case.agree()

    def ours() -> None:
        case.ours()
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)

    benchmark.group = operator
    benchmark(ours)
    peer_speed = case.moved / seconds(case.peer, machine.device, rounds=5) / 1e9
    if not benchmark.stats:  # --benchmark-disable
        return
    speed = case.moved / benchmark.stats["min"] / 1e9
    ceiling = machine.read if case.reads else machine.copy
    benchmark.extra_info.update(
        bytes_moved=case.moved,
        gigabytes_per_second=speed,
        read_ceiling=machine.read,
        copy_speed=machine.copy,
        share_of_ceiling=speed / ceiling,
        torch_gigabytes_per_second=peer_speed,
        times_torch=speed / peer_speed,
        threads=torch.get_num_threads(),
    )
    numbers = (f"{speed:.1f}", f"{speed / ceiling:.0%}", f"{peer_speed:.1f}", f"{speed / peer_speed:.1f}")
    request.config.stash[ROWS].append((operator, name, str(machine.device), *numbers))
