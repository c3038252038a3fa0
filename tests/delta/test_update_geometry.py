"""The geometry of updates: invariances, chance levels, and what float32 would not see."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlforget as rf
from rlforget.delta.spectra import angles, exact, leading, shuffled
from rlforget.delta.update_geometry import MatrixGeometry, geometry
from rlforget.errors import ConfigError, LayoutError, NonFiniteError

sizes = st.integers(4, 24)
seeds = st.integers(0, 10_000)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw(size, size, seed=seed)).Q


def of(before: Tensor, after: Tensor, **options: object) -> MatrixGeometry:
    found = geometry({"w": before}, {"w": after}, **options)  # type: ignore[arg-type]
    return found.matrices["w"]


@settings(max_examples=25, deadline=None)
@given(out=sizes, width=sizes, seed=seeds)
def test_turning_the_coordinates_of_both_sides_changes_nothing(out: int, width: int, seed: int) -> None:
    before, change = draw(out, width, seed=seed), 0.01 * draw(out, width, seed=seed + 1)
    left, right = orthogonal(out, seed + 2), orthogonal(width, seed + 3)
    one, other = of(before, before + change), of(left @ before @ right, left @ (before + change) @ right)
    for name in ("norm", "update_norm", "stable_rank", "energy", "rank"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6), name
    assert one.turn.shift == pytest.approx(other.turn.shift, rel=1e-6)
    for side in ("left", "right"):
        assert getattr(one.turn, side) == pytest.approx(getattr(other.turn, side), rel=1e-4, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, angle=st.floats(1e-9, 0.7))
def test_a_turn_is_found_however_small(seed: int, angle: float) -> None:
    before = draw(8, 3, seed=seed) @ torch.diag(torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64))
    left = torch.linalg.svd(before, full_matrices=True)[0]
    turn = torch.eye(8, dtype=torch.float64)  # the first singular vector, toward one outside of the range
    turn[0, 0] = turn[5, 5] = math.cos(angle)
    turn[5, 0], turn[0, 5] = math.sin(angle), -math.sin(angle)
    found = of(before, left @ turn @ left.mT @ before, rank=1).turn
    assert found.left == pytest.approx((angle,), rel=1e-5, abs=1e-14)
    assert found.right == pytest.approx((0.0,), abs=1e-7)
    assert found.shift < 1e-12


def test_what_float32_would_make_of_nearly_the_same_matrices() -> None:
    """The published warning: in float32 the turn of a small update is rounding; here it is the true one."""
    before = draw(64, 48, seed=0).float()
    after = before.clone()
    after.view(-1)[::50] *= 1 + 2e-7
    one, other = (torch.linalg.svd(side)[0][:, :8] for side in (before, after))
    float32 = torch.linalg.svdvals(one.mT @ other).clamp(max=1).acos().max()
    found = of(before, after, rank=8).turn
    # Davis and Kahan: the turn is at most that of the change over the gap; float32 sees a hundred times that.
    values = torch.linalg.svdvals(before.double())
    bound = torch.linalg.matrix_norm(after.double() - before.double(), 2) / (values[7] - values[8])
    assert 0 < found.largest < 2 * bound < float32 / 10


@settings(max_examples=25, deadline=None)
@given(out=sizes, width=sizes, seed=seeds)
def test_angles_are_those_of_the_definition(out: int, width: int, seed: int) -> None:
    rank = max(1, min(out, width) // 2)
    one, other = (torch.linalg.qr(draw(out, rank, seed=seed + i)).Q for i in (0, 1))
    expected = torch.linalg.svdvals(one.mT @ other).clamp(max=1).acos()
    torch.testing.assert_close(angles(one, other), expected, atol=1e-6, rtol=1e-6)
    turned = other @ orthogonal(rank, seed + 2)  # another basis of the same subspace
    torch.testing.assert_close(angles(one, turned), angles(one, other), atol=1e-9, rtol=1e-7)


@settings(max_examples=25, deadline=None)
@given(out=st.integers(6, 40), width=st.integers(6, 40), seed=seeds, decay=st.floats(0.5, 1.0))
def test_leading_values_lie_within_their_bound(out: int, width: int, seed: int, decay: float) -> None:
    matrix = draw(out, width, seed=seed) * decay ** torch.arange(width, dtype=torch.float64)
    rank = 2
    (found,), (true,) = leading(matrix[None], rank, seed), exact(matrix[None], rank)
    every = true.values
    for value in found.values:
        assert (every - value).abs().min() <= found.error + 1e-9 * every[0]
    torch.testing.assert_close(found.left.mT @ found.left, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(found.right.mT @ found.right, torch.eye(rank, dtype=torch.float64))
    assert found.values[0] <= every[0] * (1 + 1e-9)


def test_large_matrices_are_measured_as_small_ones_are() -> None:
    before = draw(90, 70, seed=0) @ torch.diag(0.8 ** torch.arange(70, dtype=torch.float64))
    after = before + 1e-3 * draw(90, 1, seed=1) @ draw(1, 70, seed=2)
    whole, part = of(before, after, rank=6), of(before, after, rank=6, exact=16)
    assert (whole.values, whole.error, whole.rank) == (70, 0.0, 1)
    assert (part.values, part.rank) == (6, None)
    assert 0 < part.error < 1e-6
    for name in ("update_norm", "stable_rank", "energy"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=1e-6), name
    assert part.turn.left == pytest.approx(whole.turn.left, rel=1e-3, abs=1e-8)
    assert part.changed_principal == whole.changed_principal


def test_a_matrix_of_low_rank_is_decomposed_without_new_directions() -> None:
    matrix = draw(60, 2, seed=0) @ draw(2, 50, seed=1)
    (found,) = leading(matrix[None], 2, 0)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix)[:2])
    assert found.error < 1e-9


@pytest.mark.parametrize("exact", [512, 8])
def test_an_update_at_random_is_at_its_chance_levels(exact: int) -> None:
    before = draw(80, 120, seed=0)
    moved = torch.rand(80, 120, generator=torch.Generator().manual_seed(1)) < 0.2
    found = of(before, before + 1e-3 * moved * draw(80, 120, seed=2), rank=8, exact=exact)
    assert found.stable_rank == pytest.approx(found.stable_rank_by_chance, rel=0.1)
    assert 0.5 < found.turn.shift / found.turn_by_chance.shift < 2  # over eight values, in the second case
    assert found.energy == pytest.approx(found.energy_by_chance, rel=0.7)
    for overlap in (found.changed_principal, found.changed_low, found.largest_principal, found.largest_low):
        assert overlap.of_first_by_chance == pytest.approx(0.1, abs=0.001)
        assert overlap.of_first == pytest.approx(0.1, abs=0.05)


def test_an_update_on_principal_or_on_small_weights_is_told() -> None:
    before = draw(40, 30, seed=0)
    (spectrum,) = exact(before[None], 4)
    principal = spectrum.reconstruction().abs().flatten().topk(60).indices
    low = before.abs().flatten().topk(60, largest=False).indices
    for places, high in ((principal, "changed_principal"), (low, "changed_low")):
        after = before.clone()
        after.view(-1)[places] += 1e-3
        found = of(before, after, rank=4)
        assert getattr(found, high).of_first == 1.0
        assert getattr(found, high).first == 60
        assert getattr(found, high.replace("changed", "largest")).of_first == 1.0
    assert found.changed_principal.of_first < 0.1


def test_an_update_along_the_leading_vectors_moves_values_and_no_angle() -> None:
    before = draw(20, 16, seed=0)
    (s,) = exact(before[None], 3)
    found = of(before, before + 0.1 * s.left @ s.right.mT, rank=3)
    assert (found.rank, found.stable_rank) == (3, pytest.approx(3))
    assert found.energy == pytest.approx(1)
    assert found.turn.largest < 1e-12 < found.turn.shift
    assert found.turn_by_chance.largest > 1e-3
    assert found.turn_by_chance.shift < found.turn.shift


@settings(max_examples=15, deadline=None)
@given(out=sizes, width=sizes, seed=seeds)
def test_a_shuffled_change_is_as_large_and_of_the_same_spectrum(out: int, width: int, seed: int) -> None:
    change = draw(2, out, width, seed=seed)
    drawn = shuffled(change, seed)
    torch.testing.assert_close(torch.linalg.svdvals(drawn), torch.linalg.svdvals(change))
    assert torch.equal(drawn.abs().flatten(1).sort().values, change.abs().flatten(1).sort().values)
    assert torch.equal(drawn, shuffled(change, seed))


def test_stacks_dtypes_and_what_is_left_out() -> None:
    before = {
        "experts": draw(3, 8, 6, seed=0).bfloat16(),
        "bias": draw(6, seed=1),
        "same": draw(6, 6, seed=2),
        "line": draw(1, 5, seed=3).float(),
        "count": torch.arange(6).view(2, 3),
    }
    after = {name: value.clone() for name, value in before.items()}
    after["experts"][1] *= 1.5
    after["experts"][2] *= -1
    after["bias"] += 1
    after["line"] += 1
    after["count"] += 1
    found = geometry(before, after)
    assert list(found.matrices) == ["experts[1]", "experts[2]", "line"]
    assert found.matrices["experts[1]"].dtype == "bfloat16"
    assert found.matrices["experts[1]"].turn.shift == pytest.approx(0.5, rel=0.02)
    assert found.matrices["experts[2]"].turn.shift == 0
    assert found.matrices["experts[2]"].turn.largest < 1e-7
    assert found.to_dict() == geometry(before, rf.diff(before, after)).to_dict()
    json.dumps(found.to_dict(), allow_nan=False)
    assert list(geometry(before, after, only=lambda name: name == "line").matrices) == ["line"]
    rows = found.table().splitlines()
    assert [row.split()[0] for row in rows[1:4]] == list(found.matrices)
    assert max(map(len, rows)) <= 100


def test_what_cannot_be_measured_is_refused() -> None:
    before = {"w": draw(6, 6, seed=0)}
    with pytest.raises(LayoutError, match="matrix that differs"):
        geometry(before, before)
    for options in ({"rank": 0}, {"rank": 1000}, {"share": 0.0}, {"share": 1.0}):
        with pytest.raises(ConfigError):
            geometry(before, {"w": before["w"] + 1}, **options)
    for bad in (math.nan, math.inf):
        wrong = before["w"].clone()
        wrong[2, 3] = bad
        for sides in ((before, {"w": wrong}), ({"w": wrong}, before)):
            with pytest.raises(NonFiniteError, match="'w'"):
                geometry(*sides)
