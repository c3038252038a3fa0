from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import rollback as package
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.rollback import cpu, foreach_rollback_, gpu, reference, rollback_
from tests.kernels.strategies import (
    DTYPES,
    FLOATS,
    LAYOUTS,
    OPCHECK_DTYPES,
    THOROUGH,
    changed_copy,
    densities,
    generator,
    laid_out,
    random_tensor,
    same_bits,
    seeds,
    shapes,
)

NARROW = tuple(dtype for dtype in FLOATS if dtype.itemsize < 4)
BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])


def rolled_back(backend: ModuleType, weight: Tensor, *args: Any, layout: str = "contiguous") -> Tensor:
    """The weight after the operator ran on a copy of it."""
    weight = laid_out(weight, layout)
    use(backend)(weight, *args)
    return weight


def use(backend: ModuleType) -> Callable[..., None]:
    """The single operator as `backend` does it."""

    def rollback(
        weight: Tensor,
        before: Tensor,
        indices: Tensor | None = None,
        score: Tensor | None = None,
        threshold: float = 0.0,
        strength: float = 1.0,
        seed: int | None = None,
        offset: int = 0,
        by_share: bool = False,
    ) -> None:
        lists = [weight], [before], [indices], [score]
        backend.foreach_rollback_(*lists, threshold, strength, seed, [offset], by_share)

    return reference.rollback_ if backend is reference else rollback


@st.composite
def cases(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype]) -> tuple[Any, ...]:
    """weight, before, indices, score, threshold; dense or gathered, scored or not."""
    seed, layouts, dtype = draw(seeds), st.sampled_from(LAYOUTS), draw(dtypes)
    weight = random_tensor(dtype, draw(shapes), seed)
    before = changed_copy(weight, draw(densities), seed + 1)
    indices = None
    if draw(st.booleans()):
        chosen = torch.rand(weight.numel(), generator=generator(seed)) < draw(st.sampled_from([0.0, 0.1, 1.0]))
        wide = THOROUGH or dtype is torch.float32  # for each a kernel is compiled, which the others tell nothing new of
        indices = chosen.nonzero()[:, 0].to(draw(st.sampled_from([torch.int32, torch.int64][: 1 + wide])))
        before = as_bits(before)[indices].view(weight.dtype)
        indices = laid_out(indices, draw(layouts))
    score = random_tensor(torch.float32, tuple(before.shape), seed + 2) if draw(st.booleans()) else None
    threshold = draw(st.sampled_from([0.0, 0.1, 1.0, float("inf")]))
    return weight, laid_out(before, draw(layouts)), indices, score, threshold


@pytest.mark.parametrize("strength", [0.5, 0.3, -0.5, 1e30])
def test_every_bfloat16_code_part_of_the_way(strength: float):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    weight = codes.repeat(8)
    before = torch.cat([codes[torch.randperm(len(codes), generator=generator(seed))] for seed in range(8)])
    before[: len(codes)] = codes ^ 1
    arguments = weight.view(torch.bfloat16), before.view(torch.bfloat16), None, None, 0.0, strength
    assert same_bits(rolled_back(cpu, *arguments), rolled_back(reference, *arguments))


@BACKENDS
@given(case=cases(st.sampled_from(DTYPES)), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=60)
def test_whole(backend: ModuleType, case: tuple[Any, ...], layout: str):
    assert same_bits(rolled_back(backend, *case, layout=layout), rolled_back(reference, *case))


@BACKENDS
@given(
    case=cases(st.sampled_from(FLOATS)),
    layout=st.sampled_from(LAYOUTS),
    strength=st.floats(-0.5, 1.5, width=32),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    offset=st.sampled_from([0, 1, 999, 2**40]),
)
@settings(max_examples=80)
def test_part_of_the_way(
    backend: ModuleType, case: tuple[Any, ...], layout: str, strength: float, seed: int | None, offset: int
):
    expected = rolled_back(reference, *case, strength, seed, offset)
    assert same_bits(rolled_back(backend, *case, strength, seed, offset, layout=layout), expected)


@st.composite
def shared_cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """Like `cases`, with shares for scores: whole ones and none among them."""
    weight, before, indices, _, threshold = draw(cases(st.sampled_from(FLOATS)))
    shares = torch.rand(before.shape, generator=generator(draw(seeds)))
    shares = torch.where(shares < 0.2, 0.0, torch.where(shares > 0.8, 1.0, shares))
    return weight, before, indices, shares, threshold


@BACKENDS
@given(
    case=shared_cases(),
    layout=st.sampled_from(LAYOUTS),
    strength=st.sampled_from([1.0, 0.3, 2.0]),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    offset=st.sampled_from([0, 999, 2**40]),
)
@settings(max_examples=60)
def test_by_share(
    backend: ModuleType, case: tuple[Any, ...], layout: str, strength: float, seed: int | None, offset: int
):
    weight, before, indices, shares, _ = case
    found = rolled_back(backend, *case, strength, seed, offset, True, layout=layout)
    assert same_bits(found, rolled_back(reference, *case, strength, seed, offset, True))
    where = slice(None) if indices is None else indices.long()
    steps = strength * shares.reshape(-1)
    now, after, old = as_bits(weight)[where], as_bits(found)[where], as_bits(before)
    assert torch.equal(after[steps == 1], old[steps == 1])
    assert torch.equal(after[steps == 0], now[steps == 0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
def test_equal_shares_are_a_strength(backend: ModuleType, dtype: torch.dtype):
    """0.25 is the product of a strength and a share, or either alone."""
    now, old = torch.randn(2, 500, generator=generator(0)).to(dtype)
    expected = rolled_back(reference, now, old, None, None, 0.0, 0.25, 5)
    for strength, share in ((1.0, 0.25), (0.5, 0.5)):
        found = rolled_back(backend, now, old, None, torch.full((500,), share), 9.0, strength, 5, 0, True)
        assert same_bits(found, expected)


@BACKENDS
@given(
    listed=st.lists(cases(st.sampled_from(FLOATS)), max_size=4),
    strength=st.sampled_from([0.3, 1.0]),
    seed=st.one_of(st.none(), seeds),
)
@settings(max_examples=30)
def test_many_weights_at_once(backend: ModuleType, listed: list[tuple[Any, ...]], strength: float, seed: int | None):
    offsets = [7 * k for k in range(len(listed))]
    columns = [[case[k] for case in listed] for k in range(4)]
    weights = [laid_out(weight, LAYOUTS[k % len(LAYOUTS)]) for k, weight in enumerate(columns[0])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "backend", lambda _, *tensors: backend)
        foreach_rollback_(weights, *columns[1:], 0.1, strength, seed, offsets)
    for weight, offset, (before, *others, _) in zip(weights, offsets, listed, strict=True):
        assert same_bits(weight, rolled_back(reference, before, *others, 0.1, strength, seed, offset))


def test_without_offsets_each_weight_follows_on_the_one_before():
    weights, before = random_tensor(torch.bfloat16, (3, 500), 0), random_tensor(torch.bfloat16, (3, 500), 1)
    expected = rolled_back(cpu, weights, before, None, None, 0.0, 0.3, 5)
    listed = list(weights)
    foreach_rollback_(listed, list(before), [], [], strength=0.3, seed=5)
    assert same_bits(weights, expected)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("gathered", [False, True])
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype, gathered: bool):
    """Ten million draws of a value between two that the dtype has: their mean within five standard errors."""
    draws = 10_000_000
    start, goal, strength = torch.tensor([1.25, 1.0, 0.01])
    exact = (start - strength * (start - goal)).double()
    weight, before = (torch.full((draws,), value.item()).to(dtype) for value in (start, goal))
    indices = torch.arange(draws, dtype=torch.int32) if gathered else None
    rollback_(weight, before, indices, strength=0.01, seed=11)
    lower, upper = as_bits(weight).unique().view(dtype).double().sort().values
    chance = (exact - lower) / (upper - lower)
    found = (as_bits(weight) == as_bits(upper.to(dtype))).double().mean()
    assert 0 < chance < 1
    assert (found - chance).abs() <= 5 * (chance * (1 - chance) / draws) ** 0.5


def test_random_bits_follow_the_coordinate_alone():
    weight, before = torch.ones(10_000, dtype=torch.bfloat16), torch.full((10_000,), 1.25, dtype=torch.bfloat16)
    whole = rolled_back(cpu, weight, before, None, None, 0.0, 0.01, 7)
    tail = rolled_back(cpu, weight[6_000:], before[6_000:], None, None, 0.0, 0.01, 7, 6_000)
    assert same_bits(tail, whole[6_000:])
    some = torch.arange(1, 10_000, 3)
    picked = rolled_back(cpu, weight, before[some], some, None, 0.0, 0.01, 7)
    assert same_bits(picked[some], whole[some])
    assert not same_bits(rolled_back(cpu, weight, before, None, None, 0.0, 0.01, 8), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=seeds, density=densities)
@settings(max_examples=5)
def test_strength_one_gives_back_the_old_bits(dtype: torch.dtype, seed: int, density: float):
    before = random_tensor(dtype, (33, 7), seed)
    weight = changed_copy(before, density, seed)
    rollback_(weight, before)
    assert same_bits(weight, before)


@given(case=cases(st.sampled_from(FLOATS)), strength=st.sampled_from([0.3, 1.0]))
@settings(max_examples=40)
def test_other_coordinates_keep_their_bits(case: tuple[Any, ...], strength: float):
    weight, before, indices, score, threshold = case
    chosen = as_bits(torch.ones_like(before, dtype=torch.bool)).bool()
    if score is not None:
        chosen = score.reshape(-1) >= threshold
    written = torch.zeros(weight.numel(), dtype=torch.bool)
    written[slice(None) if indices is None else indices.long()] = chosen
    changed = weight.clone()
    rollback_(changed, before, indices, score, threshold, strength)
    assert torch.equal(as_bits(changed)[~written], as_bits(weight)[~written])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
def test_part_of_the_way_is_the_formula(backend: ModuleType, dtype: torch.dtype):
    now, old = torch.randn(2, 500, generator=generator(0)).to(dtype)
    moved = rolled_back(backend, now, old, None, None, 0.0, 0.25)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    expected = now.to(wide) - 0.25 * (now.to(wide) - old.to(wide))
    assert same_bits(moved, torch.where(as_bits(now) == as_bits(old), now.to(wide), expected).to(dtype))


@pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
def test_float64_uses_all_digits_of_the_strength(backend: ModuleType):
    moved = rolled_back(
        backend, torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), None, None, 0.0, 0.3
    )
    assert moved.item() == 1 - 0.3 * 1.0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
def test_overflow_and_nan(backend: ModuleType, dtype: torch.dtype):
    top = torch.finfo(dtype).max
    infinity = float("inf") if dtype is not torch.float8_e4m3fn else float("nan")
    now = torch.tensor([top, -top, infinity, 1.0]).to(dtype)
    old = torch.tensor([-top, top, -1.0, float("nan")]).to(dtype)
    moved = rolled_back(backend, now, old, None, None, 0.0, -0.5).float()
    saturates = dtype is torch.float8_e4m3fn
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    expected = (now.to(wide) + 0.5 * (now.to(wide) - old.to(wide)))[:2]
    assert moved[:2].tolist() == (expected.clamp(-448, 448) if saturates else expected.to(dtype).float()).tolist()
    assert moved[2].item() == float("inf") or (saturates and moved[2].isnan())
    assert moved[3].isnan()
    assert not moved[3].signbit()


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    weight, before = random_tensor(torch.bfloat16, (20_000,), 0), random_tensor(torch.bfloat16, (20_000,), 1)
    expected = rolled_back(reference, weight, before, None, None, 0.0, 0.3, 5)
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert same_bits(rolled_back(cpu, weight, before, None, None, 0.0, 0.3, 5), expected)


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
@pytest.mark.parametrize("gathered", [False, True])
def test_opcheck(dtype: torch.dtype, gathered: bool):
    weight, before = random_tensor(dtype, (4, 5), 0), random_tensor(dtype, (4, 5), 1)
    indices = torch.tensor([0, 7, 19]) if gathered else None
    before = before.reshape(-1)[:3].clone() if gathered else before
    score = torch.rand(before.shape, generator=generator(0))
    strength = 0.5 if dtype.is_floating_point else 1.0
    arguments = (0.5, strength, 3, 7)
    torch.library.opcheck(torch.ops.rlforget.rollback_.default, (weight, before, indices, score, *arguments))
    lists = ([weight, weight.clone()], [before] * 2, [indices] * 2, [score] * 2)
    torch.library.opcheck(torch.ops.rlforget.foreach_rollback_.default, (*lists, *arguments[:3], [0, 5]))
    if dtype.is_floating_point:
        torch.library.opcheck(torch.ops.rlforget.rollback_.default, (weight, before, indices, score, *arguments, True))


def test_a_live_parameter_is_written_in_place():
    parameter = torch.nn.Parameter(torch.ones(3))
    address = parameter.data_ptr()
    with torch.no_grad():
        rollback_(parameter, torch.tensor([2.0]), torch.tensor([1]))
    assert parameter.tolist() == [1.0, 2.0, 1.0]
    assert parameter.data_ptr() == address


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"before": torch.zeros(4).half()}, TypeError, "before"),
        ({"before": torch.zeros(3)}, ValueError, r"\(4,\).*\(3,\)"),
        ({"score": torch.zeros(3)}, ValueError, "score"),
        ({"score": torch.zeros(4).double()}, TypeError, "score"),
        ({"strength": float("nan")}, ValueError, "finite"),
        ({"indices": torch.zeros(3, dtype=torch.int64)}, ValueError, "equal length"),
        ({"indices": torch.zeros(4)}, TypeError, "indices"),
        ({"indices": torch.tensor([0, 1, 2, 4])}, IndexError, r"\[0, 4\).*found 4"),
        ({"indices": torch.tensor([0, 1, 2, -3])}, IndexError, "found -3"),
        ({"weight": torch.ones(4).int(), "before": torch.zeros(4).int(), "strength": 0.5}, TypeError, "strength 1"),
        ({"by_share": True}, ValueError, "share"),
        (
            {
                "weight": torch.ones(4).int(),
                "before": torch.zeros(4).int(),
                "score": torch.ones(4),
                "by_share": True,
            },
            TypeError,
            "shares",
        ),
        ({"weight": torch.ones(4).cfloat(), "before": torch.zeros(4).cfloat()}, TypeError, "complex64"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str):
    given = {"weight": torch.ones(4), "before": torch.zeros(4), **arguments}
    with pytest.raises(error, match=message):
        rollback_(**given)
    assert given["weight"].real.all()
