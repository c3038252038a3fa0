"""More coordinates than 32 bits count: minutes, and up to 12 GB."""

from __future__ import annotations

import pytest
import torch

from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.delta_matmul import delta_matmul
from rlforget_kernels.delta_stats import DeltaStats, delta_stats
from rlforget_kernels.fingerprint import fingerprint, fingerprint_after_patch
from rlforget_kernels.fisher_accumulate import fisher_accumulate_
from rlforget_kernels.gradient_gram import gradient_gram_
from rlforget_kernels.patch import patch_
from rlforget_kernels.project_rollback import project_rollback_
from rlforget_kernels.project_sparse import project_sparse
from rlforget_kernels.rollback import rollback_
from rlforget_kernels.select_top import select_above, select_top
from rlforget_kernels.sparse_delta import sparse_delta
from rlforget_kernels.subtract import subtract_

COUNT = 2**31 + 4099
FAR = [3, 2**31 + 5, COUNT - 1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_rollback(strength: float):
    weight = torch.zeros(COUNT, dtype=torch.float8_e5m2)
    before = weight.clone()
    before.view(torch.int8)[FAR] = torch.tensor(4.0).to(torch.float8_e5m2).view(torch.int8)
    rollback_(weight, before, strength=strength)
    assert weight.view(torch.int8)[FAR].view(torch.float8_e5m2).tolist() == [4.0 * strength] * 3
    assert int((weight.view(torch.int8) != 0).sum()) == 3
    rollback_(weight, torch.zeros(3).to(torch.float8_e5m2), torch.tensor(FAR))
    assert not weight.view(torch.int8).any()


def test_random_bits_of_far_coordinates():
    weight, u = torch.ones(COUNT, dtype=torch.float8_e5m2), torch.full((COUNT,), 0.01)
    subtract_(weight, u, seed=3)
    tail = torch.ones(5000, dtype=torch.float8_e5m2)
    subtract_(tail, u[:5000], seed=3, offset=COUNT - 5000)
    assert torch.equal(weight[-5000:].view(torch.int8), tail.view(torch.int8))


def test_fisher():
    gradient = torch.zeros(COUNT, dtype=torch.float8_e5m2)
    gradient.view(torch.int8)[FAR] = torch.tensor(2.0).to(torch.float8_e5m2).view(torch.int8)
    fisher = torch.zeros(COUNT)
    fisher_accumulate_(fisher, gradient)
    assert fisher.nonzero().flatten().tolist() == FAR
    few = torch.zeros(3)
    fisher_accumulate_(few, gradient, torch.tensor(FAR))
    assert few.tolist() == [4.0] * 3


def test_selection():
    scores = torch.zeros(COUNT)
    scores[FAR] = torch.tensor([1.0, 2.0, 3.0])
    (found,) = select_top([scores], 5)
    assert found.tolist() == [0, 1, *FAR]
    (found,) = select_above([scores], 2.0)
    assert found.tolist() == FAR[1:]


def test_scores():
    scores, histogram = conflict_score(torch.zeros(()).expand(COUNT), "random", seed=3)
    tail, _ = conflict_score(torch.zeros(5000), "random", seed=3, offset=COUNT - 5000)
    assert torch.equal(scores[-5000:], tail)
    assert histogram.sum() == COUNT
    del tail
    (found,) = select_top([scores], 2, histogram)
    assert torch.equal(scores[found].max(), scores.max())


def test_from_the_changes_to_a_patch():
    """The changes, what they measure, and writing them: the fingerprint follows."""
    before = torch.zeros(COUNT, dtype=torch.int8)
    after = before.clone()
    after[FAR] = torch.tensor([1, 2, -3], dtype=torch.int8)
    indices, old, new = sparse_delta(before, after)
    assert indices.dtype is torch.int64
    assert indices.tolist() == FAR
    assert old.tolist() == [0] * 3
    assert new.tolist() == [1, 2, -3]
    stats = DeltaStats(*delta_stats(before, after))
    assert stats.count("changed") == 3
    assert stats.sums.tolist() == [6.0, 14.0, 3.0]
    lanes = fingerprint(before)
    assert patch_(before, indices + 1, old, new) == 1  # the last one lies outside
    assert torch.equal(fingerprint(before), lanes)
    assert patch_(before, indices, old, new) == 0
    assert torch.equal(before, after)
    assert torch.equal(fingerprint(before), fingerprint_after_patch(lanes, indices, old, new))


def test_more_changes_than_32_bits_count():
    before = torch.zeros(COUNT, dtype=torch.bool)
    stats = DeltaStats(*delta_stats(before, ~before))
    assert stats.count("changed") == COUNT
    assert stats.sums.tolist() == [COUNT, COUNT, 1.0]
    assert stats.exponents[127] == stats.steps[1] == COUNT


SHAPE = (65536, 32769)
PLACES = [(0, 0), (65535, 32768), (40000, 17)]


def large_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices that differ by 1, 2 and 4 at `PLACES`."""
    before, after = (torch.zeros(SHAPE, dtype=torch.float8_e5m2) for _ in range(2))
    for k, place in enumerate(PLACES):
        after[place] = float(2**k)
    return before, after


def selecting(side: int) -> torch.Tensor:
    """A basis of the rows or columns of `PLACES`, one a column."""
    chosen = torch.zeros(SHAPE[side], len(PLACES))
    for k, place in enumerate(PLACES):
        chosen[place[side], k] = 1.0
    return chosen


def test_product():
    (product,), energy = delta_matmul(*([matrix] for matrix in large_pair()), [selecting(1)])
    assert [product[i, k].item() for k, (i, _) in enumerate(PLACES)] == [1.0, 2.0, 4.0]
    assert product.count_nonzero() == 3
    assert energy.tolist() == [21.0]


def test_rollback_in_directions():
    before, weight = large_pair()
    project_rollback_(weight, before, selecting(0), selecting(1), torch.eye(3) * torch.tensor([1.0, 0.5, 0.0]))
    assert [weight[place].item() for place in PLACES] == [0.0, 1.0, 4.0]
    assert weight.view(torch.int8).count_nonzero() == 2


def test_projection_of_changes():
    indices = torch.tensor(sorted(i * SHAPE[1] + j for i, j in PLACES))
    core = project_sparse(indices, torch.tensor([1.0, 4.0, 2.0]), SHAPE, selecting(0), selecting(1))
    assert torch.equal(core, torch.diag(torch.tensor([1.0, 2.0, 4.0])))


@pytest.mark.parametrize("form", ["pairwise", "explicit"])
def test_gram(form: str):
    """Of inputs with so many features over all positions, of which few positions count."""
    x, y = (torch.zeros(2, 65537, features, dtype=torch.bfloat16) for features in (16385, 3))
    counts = torch.zeros(2, 65537, dtype=torch.bool)
    assert x.numel() > 2**31
    for sample, position, value in ((0, 0, 1.0), (0, 65536, 2.0), (1, 0, 3.0), (1, 65536, 4.0)):
        counts[sample, position] = True
        x[sample, position, 16384] = value
        y[sample, position, sample] = 1.0
        y[sample, position, 2] = 1.0
    gram = torch.zeros(2, 2, dtype=torch.float64)
    gradient_gram_(gram, x, y, counts, form=form)
    assert gram.tolist() == [[2 * 9.0, 21.0], [21.0, 2 * 49.0]]
