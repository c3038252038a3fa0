"""Work is dealt to ranks evenly, and a lone process is a world of one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from rlforget.weights import ranks
from rlforget.weights.ranks import mine, summed, world


def shares(count: int, ranks_: int, monkeypatch: pytest.MonkeyPatch) -> Sequence[list[int]]:
    monkeypatch.setattr(ranks, "_running", lambda: True)
    monkeypatch.setattr(ranks.distributed, "get_world_size", lambda: ranks_)
    found = []
    for rank in range(ranks_):
        monkeypatch.setattr(ranks.distributed, "get_rank", lambda rank=rank: rank)
        found.append([position for position in range(count) if mine(position)])
    return found


@pytest.mark.parametrize(("count", "of"), [(7, 1), (16, 4), (5, 8), (0, 3)])
def test_work_is_dealt_once_and_evenly(count: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares(count, of, monkeypatch)
    assert sorted(position for own in found for position in own) == list(range(count))
    if count == 16:
        assert len({sum(position + 1 for position in own) for own in found}) == 1  # later pieces cost more


def test_alone_all_is_mine() -> None:
    assert world() == 1
    assert all(mine(position) for position in range(5))
    assert torch.equal(summed(torch.ones(3)), torch.ones(3))
