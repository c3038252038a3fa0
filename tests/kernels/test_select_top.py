from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import select_top as package
from rlforget_kernels.common.score_bits import LEADING_BINS, ROW, TRAILING_BINS, TRAILING_BITS
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.select_top import (
    cpu,
    gpu,
    indices_from,
    leading_histogram,
    reference,
    select_above,
    select_top,
    select_top_each,
    threshold,
    trailing_histogram,
)
from tests.kernels.strategies import LAYOUTS, generator, laid_out, same_bits, seeds, shapes

INFINITY = 0x7F800000
HALVES = torch.tensor([1.0, 0.5, 0.5])
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


BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])


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
            histogram = leading_histogram(scores) if given_histogram else None
            found = select_top(scores, count, histogram)
        expected = reference.select_top(scores, count)
        assert len(found) == len(scores)
        assert all(map(same_bits, found, expected))

    check()


@BACKENDS
@given(scores=score_lists())
@settings(max_examples=15)
def test_histograms_count_every_score(backend: ModuleType, scores: list[Tensor]):
    bits = torch.cat([score.abs().reshape(-1).view(torch.int32).long() for score in scores])
    high = backend.leading_histogram(scores)
    assert torch.equal(high, torch.bincount(bits >> TRAILING_BITS, minlength=LEADING_BINS))
    leading = int(high.argmax())
    inside = bits[bits >> TRAILING_BITS == leading] % TRAILING_BINS
    assert torch.equal(backend.Trailing(scores, leading).histogram(), torch.bincount(inside, minlength=TRAILING_BINS))


@pytest.mark.parametrize("in_shared", [False, True])
@given(scores=score_lists())
@settings(max_examples=15)
def test_a_gpu_counts_in_either_memory(in_shared: bool, scores: list[Tensor]):
    bits = torch.cat([score.abs().reshape(-1).view(torch.int32).long() for score in scores])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "IN_SHARED", in_shared)
        found = gpu.leading_histogram(scores)
    assert torch.equal(found, torch.bincount(bits >> TRAILING_BITS, minlength=LEADING_BINS))


@BACKENDS
def test_every_kind_of_fault_is_counted_apart(backend: ModuleType):
    quiet, signalling = 0x7FC12345, 0x7F800001
    bits = torch.tensor([quiet, signalling, quiet - 2**31, signalling - 2**31, 0xBF800000 - 2**32, -(2**31)])
    histogram = backend.leading_histogram([bits.to(torch.int32).view(torch.float32)])
    assert histogram[0xFF8] == 4
    assert histogram[0xFFF] == 1  # −1.0
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
    ranks = [[score] for score in scores]
    leading, rest = threshold(sum(map(leading_histogram, ranks)), count)
    trailing, ties = threshold(sum(trailing_histogram(rank, leading) for rank in ranks), rest)
    found = []
    for rank in ranks:
        (indices,), taken = indices_from(rank, leading << TRAILING_BITS | trailing, ties)
        ties -= taken
        found.append(indices)
    assert ties == 0
    assert all(map(same_bits, found, select_top(scores, count)))


def test_histogram_of_conflict_score_is_the_one_needed():
    delta, fisher = torch.randn(2, 5000, generator=generator(0))
    scores, histogram = conflict_score(delta, "fisher", fisher.abs())
    assert torch.equal(histogram, leading_histogram([scores]))
    (found,) = select_top([scores], 100, histogram)
    assert torch.equal(found, torch.topk(scores, 100).indices.sort().values)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, threads: int):
    scores = [scores_of(kind, (size,), 0) for kind, size in (("ties", 20_000), ("ordinary", 3), ("zeros", 30_001))]
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for count in (0, 1, 7_000, 13_331, 40_000, 50_004):
        assert all(map(same_bits, select_top(scores, count), reference.select_top(scores, count)))


@pytest.mark.parametrize("threads", [1, 3])
def test_counters_that_are_full_several_times(monkeypatch: pytest.MonkeyPatch, threads: int):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    random = torch.Generator().manual_seed(0)
    scores = [1 + torch.randint(0, 3, (400_000,), generator=random) * 2.0**-23 for _ in range(2)]
    second = cpu.Trailing(scores, int(torch.tensor(1.0).view(torch.int32)) >> TRAILING_BITS)
    values = torch.cat(scores).view(torch.int32) % TRAILING_BINS
    expected = torch.bincount(values, minlength=TRAILING_BINS)
    assert expected.max() > 3 * 2**16
    assert torch.equal(second.histogram(), expected)
    assert torch.equal(second.sums(), expected.view(-1, ROW).sum(1))
    assert torch.equal(second.row(0), expected[:ROW])
    for count in (1, 131_072, 300_000, 799_999):
        assert all(map(same_bits, select_top(scores, count), reference.select_top(scores, count)))


def test_threads_beyond_the_copies_of_the_histogram(monkeypatch: pytest.MonkeyPatch):
    scores = [scores_of(kind, (size,), 0) for kind, size in (("ties", 20_000), ("ordinary", 3), ("zeros", 30_001))]
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(cpu, "_COPIES", 3)
    made: list[int] = []
    monkeypatch.setattr(np, "zeros", lambda size, dtype, zeros=np.zeros: made.append(size) or zeros(size, dtype))
    for count in (1, 13_331, 40_000):
        made.clear()
        assert all(map(same_bits, select_top(scores, count), reference.select_top(scores, count)))
        assert made.count(TRAILING_BINS) == 3  # the threads', and no sum


@pytest.mark.parametrize("room", [0, 1, 1_000, 5_000])
def test_tiles_for_which_there_is_no_room_are_read_again(monkeypatch: pytest.MonkeyPatch, room: int):
    use(gpu, monkeypatch)
    monkeypatch.setattr(gpu, "_ROOM", room)
    scores = [scores_of(kind, (size,), 0) for kind, size in (("ordinary", 9_000), ("ties", 7_001), ("zeros", 301))]
    for count in (1, 3_000, 7_777, 12_000):
        assert all(map(same_bits, select_top(scores, count), reference.select_top(scores, count)))


@BACKENDS
@pytest.mark.parametrize("kind", ["ties", "zeros", "special"])
def test_indices_from_lists_the_first_ties(monkeypatch: pytest.MonkeyPatch, backend: ModuleType, kind: str):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    score = scores_of(kind, (4_345,), 0)
    bits = score.abs().view(torch.int32)
    for least in bits.unique().tolist():
        equal = int((bits == least).sum())
        for ties in {0, 1, equal // 2, equal - 1, equal, equal + 1}:
            listed = (bits > least) | ((bits == least) & ((bits == least).cumsum(0) <= ties))
            (indices,), taken, _ = backend.indices_from([score], least, ties)
            assert same_bits(indices, listed.nonzero().flatten())
            assert taken == min(ties, equal)


@BACKENDS
@given(scores=score_lists(), least=st.sampled_from([-1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 3.0, float("inf")]))
@settings(max_examples=20)
def test_select_above(backend: ModuleType, scores: list[Tensor], least: float):
    with pytest.MonkeyPatch.context() as patch:
        use(backend, patch)
        found = select_above(scores, least)
    for score, indices in zip(scores, found, strict=True):
        assert same_bits(indices, (score.reshape(-1) >= least).nonzero().flatten())


@BACKENDS
@given(scores=score_lists(), share=st.sampled_from([0.0, 0.01, 0.5, 1.0]))
@settings(max_examples=15)
def test_select_top_each(backend: ModuleType, scores: list[Tensor], share: float):
    counts = [round(share * score.numel()) for score in scores]
    with pytest.MonkeyPatch.context() as patch:
        use(backend, patch)
        found = select_top_each(scores, counts)
    for score, count, indices in zip(scores, counts, found, strict=True):
        assert same_bits(indices, reference.select_top([score], count)[0])


@BACKENDS
def test_select_top_each_of_long_and_short(monkeypatch: pytest.MonkeyPatch, backend: ModuleType):
    use(backend, monkeypatch)
    scores = [scores_of("ties", (size,), 0) for size in (TRAILING_BINS - 1, TRAILING_BINS, 5)]
    counts = [300_000, 300_000, 2]
    for score, count, indices in zip(scores, counts, select_top_each(scores, counts), strict=True):
        assert same_bits(indices, reference.select_top([score], count)[0])


@pytest.mark.parametrize("together", [1, 100, 10**9])
def test_short_tensors_are_sorted_together(monkeypatch: pytest.MonkeyPatch, together: int):
    use(gpu, monkeypatch)
    monkeypatch.setattr("rlforget_kernels.select_top.together._SORTED", together)
    sorts = []
    monkeypatch.setattr(
        torch, "argsort", lambda keys, stable, sort=torch.argsort: sorts.append(keys) or sort(keys, stable=stable)
    )
    scores = [scores_of(KINDS[k % len(KINDS)], (k % 41,), k) for k in range(200)]
    counts = [k % (score.numel() + 1) for k, score in enumerate(scores)]
    for score, count, indices in zip(scores, counts, select_top_each(scores, counts), strict=True):
        assert same_bits(indices, reference.select_top([score], count)[0])
    assert all(len(keys) <= max(together, 40) for keys in sorts)
    assert (len(sorts) == 1) == (together == 10**9)


def test_no_room_is_taken_beyond_what_is_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    asked = []
    monkeypatch.setattr(np, "empty", lambda size, dtype: asked.append(size) or np.zeros(size, dtype))
    (found,) = select_top([scores_of("ties", (30_000,), 0)], 7_001)
    assert asked[-1] == len(found) == 7_001


@pytest.mark.parametrize(("first", "second", "count"), itertools.product((0, 3), (0, 70), (0, 2)))
def test_opcheck(first: int, second: int, count: int):
    scores = [torch.rand(first), torch.rand(second // 7, 7)]
    count = min(count, first + second)
    torch.library.opcheck(torch.ops.rlforget.select_top.default, (scores, count))
    torch.library.opcheck(torch.ops.rlforget.select_top.default, (scores, count, leading_histogram(scores)))
    torch.library.opcheck(torch.ops.rlforget.select_top_each.default, (scores, [min(count, first), 0]))
    torch.library.opcheck(torch.ops.rlforget.select_above.default, (scores, 0.5))


@pytest.mark.parametrize("fault", [float("nan"), -float("nan"), -1.0, -float("inf"), -1e-45])
@pytest.mark.parametrize("with_histogram", [False, True])
@pytest.mark.parametrize("count", [0, 5])
def test_a_fault_anywhere_names_its_tensor(fault: float, with_histogram: bool, count: int):
    scores = [torch.rand(10), torch.rand(0), torch.rand(10), torch.rand(10)]
    scores[2][7] = fault
    histogram = leading_histogram(scores) if with_histogram else None
    for select in (
        lambda: select_top(scores, count, histogram),
        lambda: select_top_each(scores, [0, 0, count, 1]),
        lambda: select_above(scores, 0.5),
    ):
        with pytest.raises(ValueError, match=r"scores\[2\].*found 1 that"):
            select()


@pytest.mark.parametrize(
    ("scores", "count", "histogram", "error", "message"),
    [
        ([torch.ones(3), torch.ones(2)], 6, None, ValueError, r"\[0, 5\].*found 6"),
        ([torch.ones(3)], -1, None, ValueError, "found -1"),
        ([torch.ones(3), torch.ones(3).half()], 1, None, TypeError, r"scores\[1\]"),
        ([torch.ones(3)], 1, torch.zeros(LEADING_BINS), TypeError, "histogram"),
        ([torch.ones(3)], 1, torch.zeros(LEADING_BINS, dtype=torch.int64), ValueError, "found 0 counts"),
        ([torch.ones(3)], 1, torch.ones(3, dtype=torch.int64), ValueError, r"shape \(3,\)"),
        ([torch.ones(3)], 1, leading_histogram([torch.zeros(3)]), ValueError, "histogram of scores"),
        ([torch.ones(3)], 1, leading_histogram([torch.full((3,), float("nan"))]), ValueError, "histogram of scores"),
        ([HALVES], 2, leading_histogram([torch.tensor([4.0, 1.0, 0.5])]), ValueError, "histogram of scores"),
    ],
)
def test_bad_input(scores: list[Tensor], count: int, histogram: Tensor | None, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        select_top(scores, count, histogram)


@pytest.mark.parametrize(
    ("counts", "message"), [([1], "1 for 2"), ([1, 3], r"counts\[1\].*\[0, 2\].*3"), ([-1, 1], "-1")]
)
def test_bad_counts(counts: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        select_top_each([torch.ones(3), torch.ones(2)], counts)


def test_a_threshold_that_is_no_number():
    with pytest.raises(ValueError, match="nan"):
        select_above([torch.ones(3)], float("nan"))
    for bits in (-1, INFINITY + 1):
        with pytest.raises(ValueError, match="bits"):
            indices_from([torch.ones(3)], bits, 0)
