from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.conflict_score import SCORES, conflict_score, cpu, gpu, reference
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
    found, histogram = backend.conflict_score(score=score, **arguments)
    assert same_bits(found, expected)
    assert torch.equal(histogram, expected_histogram)


@given(score=st.sampled_from(sorted(SCORES)), shape=shapes, seed=seeds)
def test_scores_order_as_their_bits(score: str, shape: tuple[int, ...], seed: int):
    scores, histogram = conflict_score(score=score, **inputs(shape, seed))
    bits = as_bits(scores)
    assert (bits >= 0).all()
    assert (bits[scores.isnan().reshape(-1)] == 0x7FC00000).all()
    assert histogram.sum() == scores.numel()
    assert histogram[0x7FC0] == scores.isnan().sum()
    assert histogram[0x7F80] == scores.isinf().sum()


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


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    arguments = inputs((20_000,), 0)
    expected = reference.conflict_score(score="two_fisher", **arguments)
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = cpu.conflict_score(score="two_fisher", **arguments)
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("score", SCORES)
def test_opcheck(score: str):
    given = {name: tensor.nan_to_num(1, 2, 3) for name, tensor in inputs((4, 5), 0).items()}  # opcheck: NaN != NaN
    torch.library.opcheck(
        torch.ops.rlforget.conflict_score.default,
        (given["delta"], score, *(given[name] if name in SCORES[score] else None for name in INPUTS), 0.1, 3, 7),
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
