"""What takes gradients of a model on a device, and writes into it, gives what it gives on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

import rlforget as rf
from benchmarks.checkpoint_pair import Shape
from benchmarks.gpu.completions import Batch, Lengths, batches
from benchmarks.gpu.model import CausalLM

pytestmark = pytest.mark.gpu

SHAPE = Shape(hidden=128, intermediate=192, layers=2, kv=64, vocabulary=96, tied=True)
SAMPLES = 8


def model(dtype: torch.dtype = torch.float32, *, changed: bool = False) -> CausalLM:
    """A random model, or that model after a change of a twentieth of its coordinates."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, dimensions in SHAPE.tensors():
        weights[name] = torch.randn(dimensions, generator=random) * 0.1 + float("norm" in name)
        moved = torch.rand(dimensions, generator=random) < 0.05
        step = 0.02 * moved * torch.randn(dimensions, generator=random)
        weights[name] = (weights[name] + changed * step).to(dtype)
    return CausalLM(SHAPE, weights)


def completions(seed: int) -> list[Batch]:
    return batches(SHAPE.vocabulary, Lengths(4, 6, 5), SAMPLES, torch.device("cpu"), seed)


def on_both(dtype: torch.dtype = torch.float32) -> tuple[rf.Delta, CausalLM, CausalLM]:
    """The change, and the model after it, on the CPU and on the device."""
    here = model(dtype, changed=True)
    return rf.diff(model(dtype), here), here, copy.deepcopy(here).cuda()


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    one, other = (torch.cat([value.flatten().double().cpu() for value in side.values()]) for side in (found, expected))
    assert found.keys() == expected.keys()
    assert (one - other).norm() <= 1e-3 * other.norm()


@pytest.mark.parametrize("where", ["now", "midpoint"])
def test_fisher(where: str) -> None:
    delta, here, there = on_both()
    found, expected = (rf.fisher(one, completions(1), delta, samples=SAMPLES, where=where) for one in (there, here))
    assert_close(found.values, expected.values)
    assert_close(found.gradient, expected.gradient)


def test_damage() -> None:
    delta, here, there = on_both()
    found, expected = (rf.damage(one, delta, completions(1), samples=SAMPLES) for one in (there, here))
    assert found.second == pytest.approx(expected.second, rel=1e-3)
    assert found.first == pytest.approx(expected.first, rel=1e-3, abs=1e-3 * abs(expected.second))


@pytest.mark.parametrize("form", ["plain", "streamed"])
def test_conflict_subspace(form: str) -> None:
    delta, here, there = on_both()
    earlier, later = completions(1), completions(2)
    options = {"samples": SAMPLES, "passes": 1, "block": 2}
    expected = rf.conflict_subspace(here, delta, [earlier], [later], form="plain", **options)
    found = rf.conflict_subspace(there, delta, [earlier], [later], form=form, **options)
    assert_close(found.correction, expected.correction)
    assert rf.diff(here, there).changed == 0  # moved to the midpoint, and back to the bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rollbacks_write_the_same_bits_and_undo_them(dtype: torch.dtype) -> None:
    delta, here, there = on_both(dtype)
    after = copy.deepcopy(here)
    fishers = [rf.fisher(here, completions(seed), delta, samples=SAMPLES) for seed in (1, 2)]
    coordinates = rf.conflict(delta, earlier=fishers[0], later=fishers[1]).top(fraction=0.01)
    subspace = rf.conflict_subspace(here, delta, [completions(1)], samples=SAMPLES, passes=1)
    for what, strength in ((coordinates, 1.0), (coordinates, 0.5), (subspace, 1.0)):
        undo = [rf.rollback(one, delta, what, strength=strength, seed=3) for one in (here, there)]
        assert rf.diff(here, there).changed == 0
        assert rf.diff(after, there).changed > 0
        for one in undo:
            one()
        assert rf.diff(after, there).changed == rf.diff(after, here).changed == 0
