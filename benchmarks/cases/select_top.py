"""`select_top` beside `torch.topk`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import floats
from rlforget_kernels.select_top import select_above, select_top, select_top_each

LAYERS = 16


def peer(score: Tensor, count: int) -> Tensor:
    return score.topk(count, sorted=False).indices.sort().values


def make(share: float, machine: Machine) -> Case:
    (score,) = floats(machine)
    score *= score
    count = int(share * machine.elements)

    def agree() -> bool:
        (ours,) = select_top([score], count)
        theirs = peer(score, count)  # which of several equal scores it takes is not said
        return len(ours) == count and torch.equal(score[ours].sort().values, score[theirs].sort().values)

    return Case(
        moved=2 * score.nbytes + 8 * count,
        ours=lambda: select_top([score], count),
        peers=torch_peers(peer, lambda: (score, count)),
        agree=agree,
        ceiling="read one",
        inputs=score.nbytes,
    )


def peer_each(scores: list[Tensor], counts: list[int]) -> list[Tensor]:
    return [peer(score, count) for score, count in zip(scores, counts, strict=True)]


def each(share: float, machine: Machine) -> Case:
    (score,) = floats(machine)
    scores = list(score.chunk(LAYERS))
    counts = [int(share * len(one)) for one in scores]

    def agree() -> bool:
        lists = zip(scores, select_top_each(scores, counts), peer_each(scores, counts), strict=True)
        return all(torch.equal(one[ours].sort().values, one[theirs].sort().values) for one, ours, theirs in lists)

    return Case(
        moved=2 * score.nbytes + 8 * sum(counts),
        ours=lambda: select_top_each(scores, counts),
        peers=torch_peers(peer_each, lambda: (scores, counts)),
        agree=agree,
        ceiling="read one",
        inputs=score.nbytes,
    )


def peer_above(score: Tensor, least: float) -> Tensor:
    return (score >= least).nonzero().squeeze(1)


def above(share: float, machine: Machine) -> Case:
    (score,) = floats(machine)
    least = 1 - share  # of numbers drawn evenly from 0 to 1
    return Case(
        moved=2 * score.nbytes + 8 * int(share * machine.elements),
        ours=lambda: select_above([score], least),
        peers=torch_peers(peer_above, lambda: (score, least)),
        agree=lambda: torch.equal(select_above([score], least)[0], peer_above(score, least)),
        ceiling="read one",
        inputs=score.nbytes,
    )


CASES = {name: partial(make, share) for name, share in {"0.2%": 0.002, "2%": 0.02, "20%": 0.2}.items()}
CASES |= {f"2% of each of {LAYERS} tensors": partial(each, 0.02), "2%, above a threshold": partial(above, 0.02)}
