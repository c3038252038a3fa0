from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.select_top import gpu, leading_histogram, reference, select_above, select_top, select_top_each
from tests.gpu.placement import on_device
from tests.kernels.strategies import same_bits
from tests.kernels.test_select_top import score_lists

pytestmark = pytest.mark.gpu


@given(scores=score_lists(), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), given_histogram=st.booleans())
@settings(max_examples=200)
def test_equals_a_stable_sort(scores: list[Tensor], share: float, given_histogram: bool):
    count = round(share * sum(score.numel() for score in scores))
    placed = [on_device(score) for score in scores]
    found = select_top(placed, count, leading_histogram(placed) if given_histogram else None)
    expected = reference.select_top(scores, count)
    assert all(same_bits(ours.cpu(), theirs) for ours, theirs in zip(found, expected, strict=True))


@given(scores=score_lists(), least=st.sampled_from([0.0, 0.5, 1.0, float("inf")]))
@settings(max_examples=100)
def test_by_threshold_and_by_count_of_each(scores: list[Tensor], least: float):
    placed = [on_device(score) for score in scores]
    for score, indices in zip(scores, select_above(placed, least), strict=True):
        assert same_bits(indices.cpu(), (score.reshape(-1) >= least).nonzero().flatten())
    counts = [score.numel() // 3 for score in scores]
    for score, count, indices in zip(scores, counts, select_top_each(placed, counts), strict=True):
        assert same_bits(indices.cpu(), reference.select_top([score], count)[0])


@pytest.mark.parametrize("in_shared", [False, True])
def test_counted_in_either_memory(monkeypatch: pytest.MonkeyPatch, in_shared: bool):
    monkeypatch.setattr(gpu, "IN_SHARED", in_shared)
    scores = [torch.rand(size, generator=torch.Generator().manual_seed(size)) for size in (5_000_011, 3, 70_000)]
    scores[2][::3] = 0.0
    assert torch.equal(leading_histogram([score.cuda() for score in scores]).cpu(), leading_histogram(scores))


def test_a_large_part_takes_no_room_beyond_what_is_listed():
    score = torch.rand(2**27, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    histogram = leading_histogram([score])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    (found,) = select_top([score], 2**26, histogram)
    assert torch.cuda.max_memory_allocated() - held <= found.nbytes + 64 * 2**20
    least = score[found].min()
    equal = (score == least).nonzero().flatten()[: int((score[found] == least).sum())]
    assert torch.equal(found, torch.cat([(score > least).nonzero().flatten(), equal]).sort().values)


def test_many_short_tensors_by_count():
    scores = [torch.rand(k % 700, generator=torch.Generator().manual_seed(k)).round(decimals=2) for k in range(2_000)]
    counts = [score.numel() // 4 for score in scores]
    found = select_top_each([on_device(score) for score in scores], counts)
    for score, count, indices in zip(scores, counts, found, strict=True):
        assert same_bits(indices.cpu(), reference.select_top([score], count)[0])


def test_two_runs_give_the_same_bits():
    """Tiles reserve their room in whatever order they come."""
    score = torch.rand(5_000_011, generator=torch.Generator("cuda").manual_seed(0), device="cuda").round(decimals=4)
    (first,), (second,) = select_top([score], 1_234_567), select_top([score], 1_234_567)
    assert torch.equal(first, second)
    assert torch.equal(first.cpu(), select_top([score.cpu()], 1_234_567)[0])


def test_a_fault_names_its_tensor():
    scores = [torch.ones(5, device="cuda"), torch.tensor([1.0, float("nan")], device="cuda")]
    with pytest.raises(ValueError, match=r"scores\[1\]"):
        select_top(scores, 1)


def test_more_than_two_to_the_31_scores():
    scores = torch.zeros(2**31 + 4099, device="cuda")
    largest = torch.tensor([3, 2**31 + 5, scores.numel() - 1], device="cuda")
    scores[largest] = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    (found,) = select_top([scores], 5)
    assert found.tolist() == [0, 1, *largest.tolist()]
