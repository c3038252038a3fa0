"""Rollback: which bits it writes, and that undoing leaves none behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, CoordinateError, LayoutError, OutputError, WrongBaseError
from rlforget.interference import ConflictSubspace, Coordinates, SoftRule
from rlforget.recovery import rollback
from rlforget.weights import save_checkpoint

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
DTYPES = [*FLOATS, torch.int8, torch.int64, torch.uint8]
SHAPES: list[tuple[int, ...]] = [(6, 5), (7,), (), (2, 3, 4), (0, 3)]

Weights = dict[str, Tensor]


def as_bytes(weights: Weights) -> dict[str, bytes]:
    return {
        n: w.detach().clone().contiguous().flatten().view(torch.uint8).numpy().tobytes() for n, w in weights.items()
    }


def random_weights(dtype: torch.dtype, seed: int) -> Weights:
    """Weights of any bits: NaN payloads, infinities and both zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"t{i}": torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
        .view(dtype)
        .view(shape)
        for i, shape in enumerate(SHAPES)
    }


def mixed(before: Weights, other: Weights, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    after = {}
    for name, value in before.items():
        keep = torch.rand(value.shape, generator=generator) < 0.5
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
        after[name] = torch.where(keep, value.view(bits), other[name].view(bits)).view(value.dtype)
    return after


def finite_pair(dtype: torch.dtype, seed: int = 0) -> tuple[Weights, Weights]:
    generator = torch.Generator().manual_seed(seed)
    before = {f"t{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    other = {f"t{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    return before, mixed(before, other, seed)


def some_of(delta: Delta, share: float, seed: int) -> Coordinates:
    generator = torch.Generator().manual_seed(seed)
    return Coordinates(
        {n: t.indices[torch.rand(t.changed, generator=generator) < share] for n, t in delta.items() if t.changed}
    )


@settings(max_examples=30)
@given(st.sampled_from(DTYPES), st.integers(0, 1000))
def test_all_coordinates_at_full_strength_are_the_old_bits(dtype: torch.dtype, seed: int) -> None:
    before = random_weights(dtype, seed)
    after = mixed(before, random_weights(dtype, seed + 1), seed)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    undo = rollback(live, delta, Coordinates.of(delta))
    assert as_bytes(live) == as_bytes(before)
    assert undo.written == undo.report.coordinates == delta.changed
    undo()
    assert as_bytes(live) == as_bytes(after)


@settings(max_examples=30)
@given(st.sampled_from(DTYPES), st.integers(0, 1000), st.floats(0, 1))
def test_only_the_chosen_coordinates_change(dtype: torch.dtype, seed: int, share: float) -> None:
    before = random_weights(dtype, seed)
    after = mixed(before, random_weights(dtype, seed + 1), seed)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    chosen = some_of(delta, share, seed)
    rollback(live, delta, chosen)
    left = diff(live, after)
    for name, tensor in left.items():
        assert torch.equal(tensor.indices.long(), chosen.get(name, torch.empty(0, dtype=torch.int64)))
        positions = torch.isin(delta[name].indices, tensor.indices)
        assert torch.equal(tensor.before_bits, delta[name].before_bits[positions])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_strength_goes_part_of_the_way(dtype: torch.dtype, strength: float) -> None:
    before, after = finite_pair(dtype)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    chosen = some_of(delta, 0.5, seed=1)
    with rollback(live, delta, chosen, strength=strength) as undo:
        for name, indices in chosen.items():
            old, new = (w[name].flatten().double()[indices] for w in (before, after))
            exact = new - strength * (new - old)
            half_step = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
            found = live[name].flatten().double()[indices]
            assert bool(((found - exact).abs() <= half_step + 1e-6 * (old.abs() + new.abs())).all())
        assert undo.report.strength == strength
    assert as_bytes(live) == as_bytes(after)


class Block(nn.Module):
    """Two tied tensors, a buffer and a transposed weight."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.tied = self.first
        self.across = nn.Parameter(torch.randn(3, 5, generator=generator).T)
        self.register_buffer("table", torch.randint(0, 9, (4,), generator=generator))


@pytest.fixture
def block() -> tuple[Block, Block, Delta]:
    before, after = Block(0), Block(1)
    return before, after, diff(before, after)


def test_a_module_with_tied_and_transposed_tensors(block: tuple[Block, Block, Delta]) -> None:
    before, live, delta = block
    held = copy.deepcopy(live.state_dict())
    across = live.across
    assert not across.is_contiguous()
    with rollback(live, delta, Coordinates.of(delta)) as undo:
        assert as_bytes(live.state_dict()) == as_bytes(before.state_dict())
        assert live.across is across
        assert live.tied is live.first
        assert undo.active
    assert as_bytes(live.state_dict()) == as_bytes(held)
    assert not undo.active


def test_a_delta_of_separate_copies_rolls_a_tied_tensor_back_once() -> None:
    before, after = Block(0), Block(1)

    def apart(model: Block) -> Weights:
        return {name: value.clone() for name, value in model.state_dict().items()}

    delta = diff(apart(before), apart(after))
    assert "tied" in list(delta)
    coordinates = Coordinates({"first": torch.tensor([0, 1, 2]), "tied": torch.tensor([2, 3])})
    with rollback(after, delta, coordinates, strength=0.5) as undo:
        assert undo.report.coordinates == 4
        old, new = Block(0).first.flatten(), Block(1).first.flatten()
        torch.testing.assert_close(after.first.flatten()[:4], (old + new)[:4] / 2)
        assert torch.equal(after.first.flatten()[4:], new[4:])
    assert torch.equal(after.first, Block(1).first)


def test_undo_is_idempotent_and_runs_when_an_exception_flies(block: tuple[Block, Block, Delta]) -> None:
    _, live, delta = block
    held = as_bytes(live.state_dict())
    with pytest.raises(KeyError, match="mine"), rollback(live, delta, Coordinates.of(delta)) as undo:
        raise KeyError("mine")
    assert as_bytes(live.state_dict()) == held
    with torch.no_grad():
        live.first += 1
    moved_on = as_bytes(live.state_dict())
    undo()
    assert as_bytes(live.state_dict()) == moved_on


def test_undo_inside_the_block_then_on_exit(block: tuple[Block, Block, Delta]) -> None:
    _, live, delta = block
    held = as_bytes(live.state_dict())
    with rollback(live, delta, Coordinates.of(delta)) as undo:
        undo()
        assert as_bytes(live.state_dict()) == held
    assert as_bytes(live.state_dict()) == held


def test_undo_keeps_changes_elsewhere(block: tuple[Block, Block, Delta]) -> None:
    _, live, delta = block
    new = live.first.detach().clone()
    undo = rollback(live, delta, {"first": torch.tensor([1])})
    with torch.no_grad():
        live.first[3, 2] = 7.0
    undo()
    assert float(live.first[3, 2].detach()) == 7.0
    assert torch.equal(live.first.detach().flatten()[:-1], new.flatten()[:-1])


def test_a_second_rollback_of_the_same_weights_is_refused(block: tuple[Block, Block, Delta]) -> None:
    _, live, delta = block
    with rollback(live, delta, {"first": torch.tensor([1])}):
        inside = as_bytes(live.state_dict())
        with pytest.raises(WrongBaseError, match="first"):
            rollback(live, delta, {"first": torch.tensor([2])})
        assert as_bytes(live.state_dict()) == inside
    rollback(live, delta, {"first": torch.tensor([2])})()


def dense(delta: Delta, dtype: torch.dtype, scale: float, seed: int = 0) -> ConflictSubspace:
    generator = torch.Generator().manual_seed(seed)
    correction = {n: scale * torch.randn(t.shape, generator=generator) for n, t in delta.items() if t.changed}
    probes = {n: torch.randn(16, u.numel(), generator=generator) for n, u in correction.items()}
    return ConflictSubspace(correction, (), probes)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_the_correction_is_subtracted_in_float32(strength: float) -> None:
    before, after = finite_pair(torch.float32)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    subspace = dense(delta, torch.float32, 0.01)
    with rollback(live, delta, subspace, strength=strength) as undo:
        for name, u in subspace.correction.items():
            assert torch.equal(live[name], after[name] - strength * u)
        report = undo.report
        assert report.rounding is not None
        assert report.rounding < 1e-4
        norm = torch.cat([strength * u.flatten() for u in subspace.correction.values()]).norm()
        change = torch.cat([tensor.values for tensor in delta.values()]).norm()
        assert report.norm_share == pytest.approx(float(norm / change), rel=1e-4)
        assert report.written == sum(u.numel() for u in subspace.correction.values())
    assert as_bytes(live) == as_bytes(after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_keeps_what_plain_rounding_drops(dtype: torch.dtype) -> None:
    numel = 40_000
    before, after = {"w": torch.full((numel,), 1.5, dtype=dtype)}, {"w": torch.full((numel,), 1.0, dtype=dtype)}
    delta = diff(before, after)
    step = float(torch.finfo(dtype).eps)
    u = torch.full((numel,), -0.1 * step)  # a tenth of the distance to the next number up: plain rounding drops it
    subspace = ConflictSubspace({"w": u}, (), {"w": torch.ones(16, numel)})
    assert torch.equal((after["w"].float() - u).to(dtype), after["w"])
    live = {"w": after["w"].clone()}
    undo = rollback(live, delta, subspace, seed=3)
    assert float((live["w"].float() - 1).mean()) == pytest.approx(0.1 * step, rel=0.05)
    assert undo.written == int((live["w"] != 1).sum())
    assert undo.written == pytest.approx(0.1 * numel, rel=0.05)
    assert undo.report.rounding == pytest.approx(3.0, rel=0.05)  # √(0.1 · 0.9) / 0.1
    assert undo.report.rounding_damage is not None
    assert undo.report.rounding_damage < 0.05  # along the probes the errors cancel
    other, again = {"w": after["w"].clone()}, {"w": after["w"].clone()}
    rollback(other, delta, subspace, seed=4)
    rollback(again, delta, subspace, seed=3)
    assert torch.equal(live["w"], again["w"])
    assert not torch.equal(live["w"], other["w"])
    undo()
    assert as_bytes(live) == as_bytes(after)


@settings(max_examples=20)
@given(st.sampled_from(FLOATS), st.integers(0, 1000))
def test_undoing_a_correction_is_exact(dtype: torch.dtype, seed: int) -> None:
    before = random_weights(dtype, seed)
    after = mixed(before, random_weights(dtype, seed + 1), seed)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    undo = rollback(live, delta, dense(delta, dtype, 0.05, seed), seed=seed)
    assert undo.written == sum(tensor.changed for tensor in diff(after, live).values())
    undo()
    assert as_bytes(live) == as_bytes(after)


def random_shares(delta: Delta, seed: int) -> SoftRule:
    """Shares of 0 and 1 among them."""
    generator = torch.Generator().manual_seed(seed)
    shares = {n: 1.4 * torch.rand(t.changed, generator=generator) - 0.2 for n, t in delta.items() if t.changed}
    return SoftRule({name: share.clamp(0, 1) for name, share in shares.items()}, 1.0)


@settings(max_examples=20)
@given(st.sampled_from(FLOATS), st.integers(0, 1000), st.sampled_from([1.0, 0.7]))
def test_the_soft_rule_gives_back_each_share(dtype: torch.dtype, seed: int, strength: float) -> None:
    before, after = finite_pair(dtype, seed)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    rule = random_shares(delta, seed)
    undo = rollback(live, delta, rule, strength=strength, seed=seed)
    for name, share in rule.shares.items():
        tensor = delta[name]
        at = tensor.indices.long()
        found, old, new = (w[name].flatten()[at] for w in (live, before, after))
        exact = new.double() - strength * share.double() * (new.double() - old.double())
        step = 2 * torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)  # either neighbour
        slack = 1e-6 * (old.double().abs() + new.double().abs())
        assert bool(((found.double() - exact).abs() <= step + slack).all())
        assert bool((found == old)[strength * share == 1].all())
        untouched = torch.ones(tensor.numel, dtype=torch.bool)
        untouched[at[share > 0]] = False
        assert torch.equal(live[name].flatten()[untouched], after[name].flatten()[untouched])
    assert undo.report.coordinates <= sum(int((share > 0).sum()) for share in rule.shares.values())
    assert undo.report.rounding is not None
    assert undo.report.rounding < {4: 1e-4, 8: 1e-4, 2: 0.1, 1: 1.0}[dtype.itemsize]
    undo()
    assert as_bytes(live) == as_bytes(after)


def test_shares_below_half_a_step_are_not_lost() -> None:
    """Of a change of one step in the last place, plain rounding keeps no share below a half."""
    numel = 40_000
    after = {"w": torch.ones(numel, dtype=torch.bfloat16)}
    before = {"w": torch.full((numel,), 1 + 2**-7, dtype=torch.bfloat16)}
    delta = diff(before, after)
    undo = rollback(after, delta, SoftRule({"w": torch.full((numel,), 0.2)}, 1.0), seed=3)
    assert undo.written == pytest.approx(0.2 * numel, rel=0.05)
    undo()
    assert bool((after["w"] == 1).all())


def test_shares_of_another_delta_or_of_integers_are_refused(block: tuple[Block, Block, Delta]) -> None:
    _, live, delta = block
    held = as_bytes(live.state_dict())
    shares = {name: torch.ones(tensor.changed) for name, tensor in delta.items() if tensor.changed}
    with pytest.raises(ConfigError, match="table"):
        rollback(live, delta, SoftRule(shares, 1.0))
    with pytest.raises(LayoutError, match="'first'"):
        rollback(live, delta, SoftRule({"first": torch.ones(999)}, 1.0))
    with pytest.raises(LayoutError, match="'nowhere'"):
        rollback(live, delta, SoftRule({"nowhere": torch.ones(1)}, 1.0))
    assert as_bytes(live.state_dict()) == held


@pytest.mark.parametrize("what", ["coordinates", "subspace", "soft"])
def test_a_fault_on_the_way_puts_all_bits_back(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlforget.interference import blocks
    from rlforget.recovery import corrections, old_bits

    before, after = finite_pair(torch.bfloat16)
    delta = diff(before, after)
    live = {name: value.clone() for name, value in after.items()}
    calls = {"count": 0}
    name = {"coordinates": "foreach_rollback_", "subspace": "subtract_", "soft": "rollback_"}[what]
    module: Any = {"coordinates": old_bits, "subspace": blocks, "soft": corrections}[what]
    last = 1 if what == "coordinates" else 2
    real = getattr(module, name)
    given = {
        "coordinates": Coordinates.of(delta),
        "subspace": dense(delta, torch.bfloat16, 0.5),
        "soft": random_shares(delta, 0),
    }

    def interrupted(*args: Any, **kwargs: Any) -> None:
        # Of tensors that are written together, between two of them.
        real(*([*one[:1]] for one in args), **kwargs) if what == "coordinates" else real(*args, **kwargs)
        calls["count"] += 1
        if calls["count"] == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        rollback(live, delta, given[what])
    assert calls["count"] == last
    assert as_bytes(live) == as_bytes(after)


def test_undo_follows_a_model_whose_tensors_were_replaced(block: tuple[Block, Block, Delta]) -> None:
    _, live, delta = block
    held = as_bytes(live.state_dict())
    undo = rollback(live, delta, Coordinates.of(delta))
    for parameter in live.parameters():
        parameter.data = parameter.data.clone()  # as a move to a device and back does
    undo()
    assert as_bytes(live.state_dict()) == held


def test_what_is_refused(block: tuple[Block, Block, Delta], tmp_path: Any) -> None:
    before, live, delta = block
    held = as_bytes(live.state_dict())
    everything = Coordinates.of(delta)
    for strength in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            rollback(live, delta, everything, strength=strength)
    with pytest.raises(ConfigError, match="table"):
        rollback(live, delta, everything, strength=0.5)
    with pytest.raises(WrongBaseError):
        rollback(before, delta, everything)
    with pytest.raises(CoordinateError):
        rollback(live, delta, {"first": torch.tensor([12])})
    with pytest.raises(CoordinateError):
        rollback(live, delta, {"nowhere": torch.tensor([0])})
    with pytest.raises(LayoutError):
        rollback(nn.Linear(2, 2), delta, everything)
    with pytest.raises(LayoutError, match="correction"):
        rollback(live, delta, ConflictSubspace({"first": torch.zeros(3, 4)}, (), {"first": torch.zeros(16, 12)}))
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, {name: value.clone() for name, value in live.state_dict().items() if name != "tied"})
    with pytest.raises(OutputError, match="on disk"):
        rollback(folder, delta, everything)
    assert as_bytes(live.state_dict()) == held
