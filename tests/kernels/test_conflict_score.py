from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import conflict_score as package
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.conflict_score import SCORES, conflict_score, cpu, foreach_conflict_score, gpu, reference
from tests.kernels.strategies import LAYOUTS, generator, laid_out, random_tensor, same_bits, seeds, shapes

BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
INPUTS = ("earlier", "later", "direction")


def inputs(shape: tuple[int, ...], seed: int, layouts: tuple[str, ...] = ("contiguous",) * 4) -> dict[str, Tensor]:
    """Every tensor argument, with special values, zeros of both signs and subnormals among them."""
    names = ("delta", *INPUTS)
    return {
        name: laid_out(random_tensor(torch.float32, shape, seed + k), layout)
        for k, (name, layout) in enumerate(zip(names, layouts, strict=True))
    }


def use(backend: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    """The single operator as `backend` does it."""

    def score_one(
        delta: Tensor,
        score: str,
        earlier: Tensor | None = None,
        later: Tensor | None = None,
        direction: Tensor | None = None,
        damping: float = 0.0,
        seed: int = 0,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        lists = [delta], score, [earlier], [later], [direction]
        (scores,), histogram = backend.foreach_conflict_score(*lists, damping, seed, [offset])
        return scores, histogram

    return score_one


@BACKENDS
@given(
    score=st.sampled_from(sorted(SCORES)),
    shape=shapes,
    seed=seeds,
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 4),
    damping=st.sampled_from([0.0, -0.0, 1e-12, 0.1, 3.0, float("inf")]),
    offset=st.sampled_from([0, 1, 12345, 2**40]),
)
@settings(max_examples=80)
def test_backend_equals_reference(
    backend: ModuleType,
    score: str,
    shape: tuple[int, ...],
    seed: int,
    layouts: tuple[str, ...],
    damping: float,
    offset: int,
):
    arguments: dict[str, Any] = {**inputs(shape, seed, layouts), "damping": damping, "seed": seed, "offset": offset}
    expected, expected_histogram = reference.conflict_score(score=score, **arguments)
    found, histogram = use(backend)(score=score, **arguments)
    assert same_bits(found, expected)
    assert torch.equal(histogram, expected_histogram)


@pytest.mark.parametrize("in_shared", [False, True])
@pytest.mark.parametrize("score", sorted(SCORES))
def test_a_gpu_counts_in_either_memory(monkeypatch: pytest.MonkeyPatch, score: str, in_shared: bool):
    monkeypatch.setattr(gpu, "IN_SHARED", in_shared)
    given = inputs((3 * 4096 + 17,), 0)  # a program takes more than one tile
    expected = reference.conflict_score(score=score, **given, damping=0.1)
    assert all(map(same_bits, use(gpu)(score=score, **given, damping=0.1), expected))


@BACKENDS
@given(
    score=st.sampled_from(sorted(SCORES)),
    kinds=st.lists(st.tuples(shapes, st.sampled_from(LAYOUTS)), max_size=5),
    seed=seeds,
    damping=st.sampled_from([0.0, 0.1]),
)
@settings(max_examples=30)
def test_many_deltas_at_once(
    backend: ModuleType, score: str, kinds: list[tuple[tuple[int, ...], str]], seed: int, damping: float
):
    listed = [inputs(shape, seed + k, (layout,) * 4) for k, (shape, layout) in enumerate(kinds)]
    columns = {name: [one[name] for one in listed] for name in ("delta", *INPUTS)}
    offsets = [3 * k for k in range(len(kinds))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "backend", lambda _, *tensors: backend)
        found, histogram = foreach_conflict_score(
            columns["delta"], score, columns["earlier"], columns["later"], columns["direction"], damping, seed, offsets
        )
    total = torch.zeros_like(histogram)
    for one, offset, scores in zip(listed, offsets, found, strict=True):
        expected, counts = reference.conflict_score(score=score, **one, damping=damping, seed=seed, offset=offset)
        assert same_bits(scores, expected)
        total += counts
    assert torch.equal(histogram, total)


@given(score=st.sampled_from(sorted(SCORES)), shape=shapes, seed=seeds)
def test_scores_order_as_their_bits(score: str, shape: tuple[int, ...], seed: int):
    scores, histogram = conflict_score(score=score, **inputs(shape, seed))
    bits = as_bits(scores)
    assert (bits >= 0).all()
    assert (bits[scores.isnan().reshape(-1)] == 0x7FC00000).all()
    assert histogram.sum() == scores.numel()
    assert histogram[0xFF8] == scores.isnan().sum()
    assert histogram[0xFF0] == scores.isinf().sum()


FORMULAS = {
    "fisher": lambda d, earlier, later, g: earlier * d**2,
    "taylor": lambda d, earlier, later, g: (g * d + 0.5 * earlier * d**2).clamp(min=0),
    "opposed": lambda d, earlier, later, g: (g * d).abs().where(g.sign() != d.sign(), torch.zeros(())),
    "two_fisher": lambda d, earlier, later, g: earlier * d**2 / (later + 0.1),
    "subspace": lambda d, earlier, later, g: (g * d).clamp(min=0),
    "magnitude": lambda d, earlier, later, g: d.abs(),
}


@pytest.mark.parametrize("score", FORMULAS)
def test_formulas(score: str):
    delta, direction = torch.randn(2, 1000, generator=generator(0))
    earlier, later = torch.rand(2, 1000, generator=generator(1))
    found, _ = conflict_score(delta, score, earlier, later, direction, damping=0.1)
    expected = FORMULAS[score](*(t.double() for t in (delta, earlier, later, direction))).float()
    torch.testing.assert_close(found, expected)


def test_random_is_uniform_and_follows_the_coordinate_alone():
    whole, _ = conflict_score(torch.zeros(100_000), "random", seed=3)
    assert whole.min() >= 0
    assert whole.max() < 1
    counts = torch.histc(whole, 10, 0, 1)
    assert ((counts - 10_000).abs() < 5 * (10_000 * 0.9) ** 0.5).all()
    tail, _ = conflict_score(torch.ones(1000), "random", seed=3, offset=99_000)
    assert torch.equal(tail, whole[99_000:])
    other, _ = conflict_score(torch.zeros(100_000), "random", seed=4)
    assert (whole == other).float().mean() < 0.001


def test_two_fisher_where_nobody_feels_the_coordinate_is_zero():
    zero = torch.zeros(2)
    scores, _ = conflict_score(torch.ones(2), "two_fisher", zero, torch.tensor([0.0, float("nan")]))
    assert scores[0] == 0
    assert scores[1].isnan()  # a broken Fisher must be seen
    scores, _ = conflict_score(torch.ones(2), "two_fisher", torch.ones(2), zero)
    assert scores.isinf().all()


@pytest.mark.parametrize("score", ["two_fisher", "random"])
def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, score: str):
    arguments = inputs((20_000,), 0)
    expected = reference.conflict_score(score=score, **arguments)
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = use(cpu)(score=score, **arguments)
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("score", SCORES)
def test_opcheck(score: str):
    given = {name: tensor.nan_to_num(1, 2, 3) for name, tensor in inputs((4, 5), 0).items()}  # opcheck: NaN != NaN
    torch.library.opcheck(
        torch.ops.rlforget.conflict_score.default,
        (given["delta"], score, *(given[name] if name in SCORES[score] else None for name in INPUTS), 0.1, 3, 7),
    )
    lists = [[given[name]] * 2 if name in SCORES[score] else [] for name in INPUTS]
    torch.library.opcheck(
        torch.ops.rlforget.foreach_conflict_score.default, ([given["delta"]] * 2, score, *lists, 0.1, 3, [0, 7])
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"score": "fischer"}, ValueError, "fisher, taylor, .*found 'fischer'"),
        ({"score": "fisher"}, ValueError, "earlier"),
        ({"score": "two_fisher", "earlier": torch.zeros(3)}, ValueError, "later"),
        ({"score": "opposed"}, ValueError, "direction"),
        ({"score": "fisher", "earlier": torch.zeros(4)}, ValueError, r"\(3,\).*\(4,\)"),
        ({"score": "fisher", "earlier": torch.zeros(3).double()}, TypeError, "earlier"),
        ({"score": "magnitude", "delta": torch.zeros(3).bfloat16()}, TypeError, "delta"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        conflict_score(**{"delta": torch.zeros(3), **arguments})


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match=r"\[2, 1, 2, 2, 2\]"):
        foreach_conflict_score([torch.zeros(3)] * 2, "fisher", [torch.zeros(3)], [], [])
