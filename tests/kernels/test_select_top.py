from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import select_top as package
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.select_top import cpu, gpu, indices_from, reference, score_histogram, select_top, threshold
from tests.kernels.strategies import LAYOUTS, generator, laid_out, same_bits, seeds, shapes

INFINITY = 0x7F800000
KINDS = ("any", "ties", "zeros", "subnormal", "one bin", "ordinary", "special")


def scores_of(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Valid scores: non-negative, possibly infinite, with −0.0 for some of the zeros."""
    random = generator(seed)

    def bits(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=random, dtype=torch.int32).view(torch.float32)

    if kind == "any":
        return bits(0, INFINITY + 1)
    if kind == "ties":
        return bits(0x3F800000, 0x3F800003)
    if kind == "zeros":
        return torch.where(torch.rand(shape, generator=random) < 0.9, 0.0, bits(0, 3))
    if kind == "subnormal":
        return bits(0, 0x00800000)
    if kind == "one bin":
        return bits(0x3F800000, 0x3F810000)
    if kind == "special":
        values = torch.tensor([0.0, -0.0, 1e-45, 1.0, 3.4e38, float("inf")])
        return values[torch.randint(0, len(values), shape, generator=random)]
    return torch.rand(shape, generator=random)


@st.composite
def score_lists(draw: st.DrawFn) -> list[Tensor]:
    """One to five tensors of scores, some of them empty."""
    some = st.tuples(st.sampled_from(KINDS), shapes, seeds, st.sampled_from(LAYOUTS))
    return [laid_out(scores_of(*draw(some)[:3]), draw(some)[3]) for _ in range(draw(st.integers(1, 5)))]


def use(backend: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Let CPU tensors take `backend`."""
    patch.setattr(package, "backend", lambda _, *tensors: backend)


@pytest.mark.parametrize(("backend", "examples"), [(cpu, 150), (gpu, 40)], ids=["cpu", "gpu"])
def test_equals_a_stable_sort(backend: ModuleType, examples: int):
    @given(
        scores=score_lists(), share=st.sampled_from([0.0, 0.001, 0.02, 0.5, 0.99, 1.0]), given_histogram=st.booleans()
    )
    @settings(max_examples=examples)
    def check(scores: list[Tensor], share: float, given_histogram: bool):
        count = round(share * sum(score.numel() for score in scores))
        with pytest.MonkeyPatch.context() as patch:
            use(backend, patch)
            histogram = sum(map(score_histogram, scores)) if given_histogram else None
            found = select_top(scores, count, histogram)
        expected = reference.select_top(scores, count)
        assert len(found) == len(scores)
        assert all(map(same_bits, found, expected))

    check()


@pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
@given(kind=st.sampled_from(KINDS), shape=shapes, seed=seeds)
@settings(max_examples=20)
def test_histograms_count_every_score(backend: ModuleType, kind: str, shape: tuple[int, ...], seed: int):
    score = scores_of(kind, shape, seed)
    bits = score.abs().reshape(-1).view(torch.int32).long()
    high = backend.score_histogram(score)
    assert torch.equal(high, torch.bincount(bits >> 16, minlength=1 << 15))
    leading = int(high.argmax())
    low = backend.score_histogram(score, leading)
    assert torch.equal(low, torch.bincount(bits[bits >> 16 == leading] & 0xFFFF, minlength=1 << 16))


@pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
def test_every_kind_of_fault_is_counted_apart(backend: ModuleType):
    quiet, signalling = 0x7FC12345, 0x7F800001
    bits = torch.tensor([quiet, signalling, quiet - 2**31, signalling - 2**31, 0xBF800000 - 2**32, -(2**31)])
    histogram = backend.score_histogram(bits.to(torch.int32).view(torch.float32))
    assert histogram[0x7FC0] == 4
    assert histogram[0x7FFF] == 1  # −1.0
    assert histogram[0] == 1  # −0.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50).filter(any), st.data())
def test_threshold_is_where_the_count_is_reached(counts: list[int], data: st.DataObject):
    count = data.draw(st.integers(1, sum(counts)))
    leading, rest = threshold(torch.tensor(counts), count)
    assert 1 <= rest <= counts[leading]
    assert sum(counts[leading + 1 :]) + rest == count


@given(score_lists(), st.sampled_from([0.01, 0.3, 1.0]))
@settings(max_examples=20)
def test_ranks_that_add_their_histograms_select_what_one_machine_would(scores: list[Tensor], share: float):
    count = round(share * sum(score.numel() for score in scores))
    if count == 0:
        return
    leading, rest = threshold(sum(map(score_histogram, scores)), count)
    trailing, ties = threshold(sum(score_histogram(score, leading) for score in scores), rest)
    found = []
    for score in scores:
        indices, taken = indices_from(score, leading << 16 | trailing, ties)
        ties -= taken
        found.append(indices)
    assert ties == 0
    assert all(map(same_bits, found, select_top(scores, count)))


def test_histogram_of_conflict_score_is_the_one_needed():
    delta, fisher = torch.randn(2, 5000, generator=generator(0))
    scores, histogram = conflict_score(delta, "fisher", fisher.abs())
    assert torch.equal(histogram, score_histogram(scores))
    (found,) = select_top([scores], 100, histogram)
    assert torch.equal(found, torch.topk(scores, 100).indices.sort().values)


@pytest.mark.parametrize("wave", [1 << 24, 7_001])
def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, wave: int):
    scores = [scores_of(kind, (20_000,), 0) for kind in ("ties", "ordinary", "zeros")]
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu, "_WAVE", wave)
    for count in (0, 1, 7_000, 13_331, 40_000, 60_000):
        assert all(map(same_bits, select_top(scores, count), reference.select_top(scores, count)))


@pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["ties", "zeros", "special"])
def test_indices_from_lists_the_first_ties(monkeypatch: pytest.MonkeyPatch, backend: ModuleType, kind: str):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu, "_WAVE", 5_000)
    score = scores_of(kind, (12_345,), 0)
    bits = score.abs().view(torch.int32)
    for least in bits.unique().tolist():
        equal = int((bits == least).sum())
        for ties in {0, 1, equal // 2, equal - 1, equal, equal + 1}:
            listed = (bits > least) | ((bits == least) & ((bits == least).cumsum(0) <= ties))
            indices, taken = backend.indices_from(score, least, ties)
            assert same_bits(indices, listed.nonzero().flatten())
            assert taken == min(ties, equal)


@pytest.mark.parametrize(("first", "second", "count"), itertools.product((0, 3), (0, 70), (0, 2)))
def test_opcheck(first: int, second: int, count: int):
    scores = [torch.rand(first), torch.rand(second // 7, 7)]
    count = min(count, first + second)
    torch.library.opcheck(torch.ops.rlforget.select_top.default, (scores, count))
    torch.library.opcheck(torch.ops.rlforget.select_top.default, (scores, count, sum(map(score_histogram, scores))))


@pytest.mark.parametrize("fault", [float("nan"), -float("nan"), -1.0, -float("inf"), -1e-45])
@pytest.mark.parametrize("with_histogram", [False, True])
@pytest.mark.parametrize("count", [0, 5])
def test_a_fault_anywhere_names_its_tensor(fault: float, with_histogram: bool, count: int):
    scores = [torch.rand(10), torch.rand(0), torch.rand(10), torch.rand(10)]
    scores[2][7] = fault
    histogram = sum(map(score_histogram, scores)) if with_histogram else None
    with pytest.raises(ValueError, match=r"scores\[2\].*found 1 that"):
        select_top(scores, count, histogram)


@pytest.mark.parametrize(
    ("scores", "count", "histogram", "error", "message"),
    [
        ([torch.ones(3), torch.ones(2)], 6, None, ValueError, r"\[0, 5\].*found 6"),
        ([torch.ones(3)], -1, None, ValueError, "found -1"),
        ([torch.ones(3), torch.ones(3).half()], 1, None, TypeError, r"scores\[1\]"),
        ([torch.ones(3)], 1, torch.zeros(1 << 15), TypeError, "histogram"),
        ([torch.ones(3)], 1, torch.zeros(1 << 15, dtype=torch.int64), ValueError, "found 0 counts"),
        ([torch.ones(3)], 1, torch.ones(3, dtype=torch.int64), ValueError, r"shape \(3,\)"),
        ([torch.ones(3)], 1, score_histogram(torch.zeros(3)), ValueError, "histogram of scores"),
        ([torch.ones(3)], 1, score_histogram(torch.full((3,), float("nan"))), ValueError, "histogram of scores"),
    ],
)
def test_bad_input(scores: list[Tensor], count: int, histogram: Tensor | None, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        select_top(scores, count, histogram)
