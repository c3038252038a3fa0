from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import gradient_gram
from rlforget_kernels.common import amx_cpu, products_cpu
from rlforget_kernels.gradient_gram import (
    DTYPES,
    blocks,
    cpu,
    explicit_cpu,
    gpu,
    gradient_gram_,
    pairwise_cpu,
    reference,
    registers_cpu,
    unit_cpu,
)
from rlforget_kernels.gradient_gram import positions_cpu as positions
from tests.kernels.strategies import LAYOUTS, generator, laid_out, seeds

PAIRS = ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.bfloat16, torch.float32))
FORMS = pytest.mark.parametrize("form", ["pairwise", "explicit"])
Side = tuple[Tensor, Tensor, Tensor | None]

Size = tuple[int, int, int, int]

# Samples, positions, features of the inputs and of the gradients, around the edges of tiles.
sizes = st.tuples(*map(st.sampled_from, ([1, 2, 5, 33, 40], [1, 3, 16, 33, 130], [1, 7, 32, 65, 140], [1, 5, 32, 70])))
# The interpreter takes a millisecond a step of a program.
few = st.tuples(*map(st.sampled_from, ([1, 3, 9], [1, 3, 17, 70], [1, 7, 65], [1, 33, 70])))


def side(
    size: Size,
    seed: int,
    *,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    masked: bool = True,
    whole: bool = False,
    layout: str = "contiguous",
) -> Side:
    """One side's inputs, gradients and mask; where it is masked, NaN stands at the positions that do not count."""
    samples, length, fan_in, out = size
    random = generator(seed)
    mask = torch.rand(samples, length, generator=random) < 0.7 if masked else None

    def values(features: int, dtype: torch.dtype) -> Tensor:
        shape = (samples, length, features)
        drawn = torch.randint(-3, 4, shape, generator=random).float() if whole else torch.randn(shape, generator=random)
        if mask is not None:
            drawn[~mask] = float("nan")
        return laid_out(drawn.to(dtype), layout)

    return values(fan_in, dtypes[0]), values(out, dtypes[1]), mask


def added(backend: ModuleType, *sides: Side, start: float = 0.0, form: str = "auto") -> Tensor:
    """What the operator makes of a matrix of `start`."""
    gram = torch.full((len(sides[0][1]), len(sides[-1][1])), start, dtype=torch.float64)
    backend.gradient_gram_(gram, *(tensor for one in sides for tensor in one), form=form)
    return gram


def magnitude(one: Side) -> Side:
    x, y, mask = one
    return x.abs() if x.is_floating_point() else x, y.abs(), mask


def assert_close(found: Tensor, *sides: Side) -> None:
    """Against float64, of ordinary numbers: far below the bound that holds for the worst of signs and roundings."""
    expected = added(reference, *sides)
    bound = 2**-20 * added(reference, *map(magnitude, sides))
    assert found.dtype is torch.float64
    assert ((found - expected).abs() <= bound).all()


@st.composite
def cases(draw: st.DrawFn, sizes: st.SearchStrategy[Size], *, whole: bool) -> list[Side]:
    """One side or two, of one weight."""
    size, seed, masked = draw(sizes), draw(seeds), draw(st.booleans())
    dtypes, layout = draw(st.sampled_from(PAIRS)), draw(st.sampled_from(LAYOUTS))
    one = side(size, seed, dtypes=dtypes, masked=masked, whole=whole, layout=layout)
    if draw(st.booleans()):
        return [one]
    other_size = (*draw(sizes)[:2], *size[2:])
    return [one, side(other_size, seed + 1, dtypes=dtypes, masked=not masked, whole=whole)]


@FORMS
@given(sides=cases(sizes, whole=False))
@settings(max_examples=60)
def test_error_against_float64(form: str, sides: list[Side]):
    assert_close(added(cpu, *sides, form=form), *sides)


@FORMS
@given(sides=cases(sizes, whole=True), start=st.sampled_from([0.0, 0.5, -7.0]))
@settings(max_examples=40)
def test_whole_numbers_are_exact(form: str, sides: list[Side], start: float):
    assert torch.equal(added(cpu, *sides, start=start, form=form), added(reference, *sides, start=start))


@FORMS
@given(sides=cases(few, whole=False))
@settings(max_examples=8)
def test_error_against_float64_under_the_interpreter(form: str, sides: list[Side]):
    assert_close(added(gpu, *sides, form=form), *sides)


@FORMS
@given(sides=cases(few, whole=True), start=st.sampled_from([0.0, 0.5, -7.0]))
@settings(max_examples=8)
def test_whole_numbers_are_exact_under_the_interpreter(form: str, sides: list[Side], start: float):
    with pytest.MonkeyPatch.context() as patch:
        if form == "explicit":
            patch.setattr(gpu, "_TILE", 16)  # fewer steps of its programs, more tiles; of the others it makes more
        found = added(gpu, *sides, start=start, form=form)
    assert torch.equal(found, added(reference, *sides, start=start))


UNIT = pytest.mark.parametrize("unit", ["registers", "pairs", "matrix"])


def choose_unit(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """Multiply on vector registers, there by products of pairs of bfloat16 numbers, or on the matrix unit."""
    if unit == "matrix" and not amx_cpu.available():
        pytest.skip("this processor has no bfloat16 matrix unit")
    if unit == "pairs" and not products_cpu.PAIRS:
        pytest.skip("this processor multiplies no pairs of bfloat16 numbers")
    monkeypatch.setattr(amx_cpu, "available", lambda: unit == "matrix")
    monkeypatch.setattr(registers_cpu, "PAIRS", unit == "pairs")


@UNIT
@FORMS
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_with_and_without_the_matrix_unit(
    monkeypatch: pytest.MonkeyPatch, unit: str, form: str, dtypes: tuple[torch.dtype, torch.dtype]
):
    choose_unit(monkeypatch, unit)
    one, other = (side((35, 150, 70, 45), seed, dtypes=kinds) for seed, kinds in enumerate((dtypes, dtypes[::-1])))
    assert_close(added(cpu, one, form=form), one)
    assert_close(added(cpu, one, other, form=form), one, other)


@UNIT
def test_more_positions_than_are_multiplied_at_a_time(monkeypatch: pytest.MonkeyPatch, unit: str):
    choose_unit(monkeypatch, unit)
    monkeypatch.setattr(explicit_cpu, "_SLAB", 1 << 17)
    one = side((5, 2 * unit_cpu.POSITIONS + 45, 70, 40), 0, dtypes=(torch.bfloat16,) * 2)
    whole = side((5, unit_cpu.POSITIONS + 1, 33, 40), 1, whole=True)
    assert_close(added(cpu, one, form="explicit"), one)
    assert torch.equal(added(cpu, whole, form="explicit"), added(reference, whole))


@UNIT
@FORMS
def test_numbers_near_the_largest_stay_finite(monkeypatch: pytest.MonkeyPatch, unit: str, form: str):
    choose_unit(monkeypatch, unit)
    x = torch.tensor([torch.finfo(torch.float32).max, -1e-30]).view(2, 1, 1)
    one = (x, torch.ones(2, 1, 1), None)
    found, expected = added(cpu, one, form=form), added(reference, one)
    assert abs(found[0, 1] / expected[0, 1] - 1) < 2**-22


@FORMS
def test_error_is_that_of_float32(form: str):
    """Of ordinary numbers, in units of the gradients' lengths."""
    one = side((24, 128, 300, 200), 0)
    expected = added(reference, one)
    length = expected.diagonal().sqrt()
    error = (added(cpu, one, form=form) - expected).abs() / (length[:, None] * length)
    assert error.max() < 2e-7


@UNIT
@FORMS
@pytest.mark.parametrize("size", [(4, 128, 2048, 64), (4, 1500, 40, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bound_for_the_worst_of_roundings(
    monkeypatch: pytest.MonkeyPatch, unit: str, form: str, size: Size, dtype: torch.dtype
):
    """Equal numbers of one sign: every sum rounds the same way again and again."""
    choose_unit(monkeypatch, unit)
    samples, length, fan_in, out = size
    x, y = (torch.full((samples, length, features), 0.1).to(dtype) for features in (fan_in, out))
    one = (x, y, None)
    expected = added(reference, one)
    error = (added(cpu, one, form=form) / expected - 1).abs().max()
    assert error <= (416 + (length + fan_in + out) / 64) * 2**-24


@FORMS
def test_the_matrix_is_symmetric_to_the_bit(form: str):
    found = added(cpu, side((70, 20, 33, 40), 3), form=form)
    assert torch.equal(found, found.T)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, form: str, dtype: torch.dtype):
    one, other = (side((70, 40, 100, 90), seed, dtypes=(dtype, dtype)) for seed in range(2))
    monkeypatch.setattr(explicit_cpu, "_SLAB", 1 << 18)  # several blocks of the weight
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append((added(cpu, one, form=form), added(cpu, one, other, form=form)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@UNIT
@FORMS
def test_blocks_of_samples_and_of_the_weight(monkeypatch: pytest.MonkeyPatch, unit: str, form: str):
    choose_unit(monkeypatch, unit)
    sides = [side((75, 6, 100, 130), seed, whole=True) for seed in range(2)]
    monkeypatch.setattr(blocks, "SAMPLES", 32)
    monkeypatch.setattr(explicit_cpu, "_SLAB", 1 << 17)
    monkeypatch.setattr(explicit_cpu, "_ROWS", 32)
    for some in (sides[:1], sides):
        assert torch.equal(added(cpu, *some, start=1.0, form=form), added(reference, *some, start=1.0))


@FORMS
def test_blocks_of_samples_and_of_the_weight_under_the_interpreter(monkeypatch: pytest.MonkeyPatch, form: str):
    sides = [side((3, 3, 20, 20), seed, whole=True) for seed in range(2)]
    monkeypatch.setattr(blocks, "SAMPLES", 2)
    monkeypatch.setattr(gpu, "_TILE", 16)
    monkeypatch.setattr(gpu, "_SLAB", 2 * 16**3)
    for some in (sides[:1], sides):
        assert torch.equal(added(gpu, *some, start=1.0, form=form), added(reference, *some, start=1.0))


def test_long_sums_are_moved_to_float64():
    """2^24 + 1 is no float32: only sums that are cut into chains can count so far."""
    features = 40_000
    ones = (torch.full((2, 1, features), 64.0), torch.full((2, 1, features), 1.0), None)
    expected = torch.full((2, 2), 64.0**2 * features**2, dtype=torch.float64)
    found = added(cpu, (ones[0][:, :, :5000], ones[1][:, :, :5000], None), form="explicit")
    assert torch.equal(found, expected * (5000 / features) ** 2)


@UNIT
@FORMS
def test_one_broken_sample_breaks_its_own_products_alone(monkeypatch: pytest.MonkeyPatch, unit: str, form: str):
    choose_unit(monkeypatch, unit)
    x, y, mask = side((40, 9, 20, 30), 0, masked=False)
    good = added(cpu, (x, y, mask), form=form)
    x = x.clone()
    x[5, 2, 3], x[7, 1, 1] = float("nan"), float("inf")
    found = added(cpu, (x, y, mask), form=form)
    broken = torch.zeros(40, dtype=torch.bool)
    broken[[5, 7]] = True
    broken = broken[:, None] | broken
    assert not found[broken].isfinite().any()
    assert torch.equal(found[~broken], good[~broken])


TOKENS = 19


def tokens(samples: int, length: int, features: int, seed: int, masked: bool = True) -> Side:
    _, y, mask = side((samples, length, 1, features), seed, masked=masked, whole=True)
    ids = torch.randint(0, TOKENS, (samples, length), generator=generator(seed + 9))
    return ids, y, mask


@given(seed=seeds, masked=st.booleans(), shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 150)))
@settings(max_examples=30)
def test_tokens(seed: int, masked: bool, shape: tuple[int, int, int]):
    samples, _, features = shape
    one, other = tokens(*shape, seed, masked), tokens(samples + 3, 7, features, seed + 1)
    dense = side((samples + 1, 9, TOKENS, features), seed + 2, whole=True)
    for sides in ([one], [one, other], [one, dense], [dense, one]):
        assert torch.equal(added(gradient_gram, *sides), added(reference, *sides))


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_under_the_interpreter(masked: bool):
    one, other, dense = tokens(5, 9, 40, 0, masked), tokens(3, 7, 40, 1), side((4, 5, TOKENS, 40), 2, whole=True)
    for sides in ([one], [one, other], [one, dense]):
        assert torch.equal(added(gpu, *sides), added(reference, *sides))


def test_every_token_of_many_samples_meets():
    one = tokens(100, 60, 40, 0)
    assert torch.equal(added(cpu, one), added(reference, one))


def test_tied_embedding():
    """The gradient of a matrix that is embedding and output layer is the sum of both: all four products."""
    ids, y, mask = tokens(6, 8, 10, 0)
    logits, x, scored = side((6, 8, TOKENS, 10), 1, whole=True)
    both = added(cpu, (ids, y, mask)) + added(cpu, (logits, x, scored))
    crossed = added(cpu, (ids, y, mask), (logits, x, scored))
    both += crossed + crossed.T
    embedded = torch.zeros(6, TOKENS, 10, dtype=torch.float64)
    for sample, position in mask.nonzero():
        embedded[sample, ids[sample, position]] += y[sample, position]
    kept = torch.where(scored.unsqueeze(-1), 1.0, 0.0).double()
    head = torch.einsum("ntv,ntd->nvd", (logits.nan_to_num() * kept).double(), (x.nan_to_num() * kept).double())
    rows = (embedded + head).flatten(1)
    assert torch.equal(both, rows @ rows.T)


def test_rows_of_gradients_themselves():
    rows = torch.randn(30, 500, generator=generator(0))
    found = added(cpu, (rows.unsqueeze(1), torch.ones(30, 1, 1), None))
    expected = rows.double() @ rows.double().T
    assert ((found - expected).abs() <= 2**-20 * rows.double().abs() @ rows.double().abs().T).all()


@pytest.mark.parametrize("size", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0)])
def test_nothing_to_add(size: Size):
    assert (added(cpu, side(size, 0), start=2.0) == 2.0).all()


@FORMS
def test_no_position_counts(form: str):
    x, y, _ = side((4, 3, 5, 6), 0, masked=False)
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    assert (added(cpu, (x, y, nothing), start=2.0, form=form) == 2.0).all()
    assert (added(cpu, (x, y, None), (x, y, nothing), start=2.0, form=form) == 2.0).all()


def test_gram_may_be_a_view():
    one = side((5, 4, 6, 7), 0, whole=True)
    held = torch.zeros(12, 10, dtype=torch.float64)
    gradient_gram_(held[1:11:2, ::2], *one)
    assert torch.equal(held[1:11:2, ::2], added(reference, one))
    assert held.count_nonzero() == held[1:11:2, ::2].count_nonzero()


def test_the_cheaper_form_is_taken(monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []
    for module, name in ((pairwise_cpu, "pairwise"), (explicit_cpu, "explicit")):
        monkeypatch.setattr(module, "gram", lambda sides, name=name: taken.append(name) or torch.zeros(4, 4).double())
    for length, kept in ((1, None), (200, None), (200, 2)):
        x, y, _ = side((4, length, 64, 64), 0, masked=False)
        mask = None if kept is None else (torch.arange(length) < kept).expand(4, length)
        added(cpu, (x, y, mask))
    assert taken == ["pairwise", "explicit", "pairwise"]


def test_costs_are_multiplications():
    one, other = (
        positions.positions(*side((4, 10, 3, 5), 0, masked=False)),
        positions.positions(*side((6, 2, 3, 5), 0, masked=False)),
    )
    assert blocks.pairwise_cost((one, other)) == 40 * 12 * 8
    assert blocks.explicit_cost((one, other)) == (40 + 12 + 24) * 15
    assert blocks.pairwise_cost((one,)) == 40 * 40 * 8 // 2
    assert blocks.explicit_cost((one,)) == (40 + 8) * 15


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["one side", "two sides", "tokens"])
def test_opcheck(dtype: torch.dtype, kind: str):
    one = side((3, 4, 5, 6), 0, dtypes=(dtype, dtype), masked=False)
    args: tuple[Any, ...] = one
    if kind == "two sides":
        args = (*side((3, 4, 5, 6), 0, dtypes=(dtype, dtype)), *one)
    elif kind == "tokens":
        args = (torch.arange(12).view(3, 4) % 5, *one[1:])
    gram = torch.zeros(3, 3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.rlforget.gradient_gram_.default, (gram, *args))


GRAM, X, Y = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 3, 4), torch.ones(2, 3, 5)
MASK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((GRAM.float(), X, Y), TypeError, "gram: expected float64; found torch.float32"),
        ((GRAM[:1], X, Y), ValueError, r"gram: expected shape \(2, 2\).*\(1, 2\)"),
        ((GRAM, X.double(), Y), TypeError, "inputs: expected float32.*float64"),
        ((GRAM, X, Y.int()), TypeError, "gradients: expected float32.*int32"),
        ((GRAM, X, Y[0]), ValueError, "gradients: expected 3 dimensions"),
        ((GRAM, X[:, :2], Y), ValueError, r"inputs: .*\(2, 3\).*\(2, 2, 4\)"),
        ((GRAM, X[:, :, 0], Y), ValueError, "inputs: "),
        ((GRAM, X.long(), Y), ValueError, "inputs: .*token ids"),
        ((GRAM, X, Y, MASK.int()), TypeError, "mask: expected bool; found torch.int32"),
        ((GRAM, X, Y, MASK[:, :2]), ValueError, r"mask: expected shape \(2, 3\); found \(2, 2\)"),
        ((GRAM, X, Y, None, X), ValueError, "other_inputs and other_gradients together"),
        ((GRAM, X, Y, None, X, X), ValueError, "5 features in gradients and 4 in other_gradients"),
        ((GRAM, X, Y, None, Y, Y), ValueError, "4 features in inputs and 5 in other_inputs"),
        ((GRAM, X, Y, None, X, Y.half(), MASK.float()), TypeError, "other_mask: expected bool"),
        ((GRAM, X, Y, None, None, None, None, "slow"), ValueError, "form: expected one of auto.*'slow'"),
        ((GRAM, torch.full((2, 3), 4), Y, None, X, Y), IndexError, r"\[0, 4\); found 4"),
        ((GRAM, torch.full((2, 3), -1), Y, None, X, Y), IndexError, r"\[0, 4\); found -1"),
    ],
)
def test_bad_input(args: tuple[Any, ...], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        gradient_gram_(*args)
    assert (GRAM == 0).all()


def test_a_token_that_does_not_count_may_be_anything():
    ids = torch.full((2, 3), -100)
    ids[:, 1] = 2
    counts = ids >= 0
    found = torch.zeros(2, 2, dtype=torch.float64)
    gradient_gram_(found, ids, Y, counts, X, Y)
    assert (found == 5 * 3).all()
