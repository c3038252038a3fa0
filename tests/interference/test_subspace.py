"""The conflict subspace against the formula, written out in float64 with N×N matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, EmptyDomainError, LayoutError, NonFiniteError, WrongBaseError
from rlforget.interference import ConflictSubspace, conflict, conflict_subspace
from rlforget.interference.completions import completion_log_probs
from rlforget.interference.linearisation import Linearisation, Side, Sources
from rlforget.interference.sample_gradients import columns_for
from rlforget.recovery import rollback

from .conftest import perturbed, tiny_model

Batch = dict[str, Tensor]


def jacobian(model: nn.Module, batches: list[Batch]) -> np.ndarray:
    """Gradients of log π, one row a completion, each over the root of their number: float64 [n, N]."""
    model.eval()
    rows = []
    for batch in batches:
        for row in range(batch["input_ids"].shape[0]):
            model.zero_grad()
            one = {name: value[row : row + 1] for name, value in batch.items()}
            completion_log_probs(model, one).sum().backward()
            rows.append(flat([parameter.grad for parameter in model.parameters()]))
    model.zero_grad()
    return np.stack(rows) / len(rows) ** 0.5


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double().numpy()


def at(values: np.ndarray) -> nn.Module:
    """The tiny model with these values for parameters, side by side."""
    model, start = tiny_model(), 0
    with torch.no_grad():
        for parameter in model.parameters():
            part = torch.from_numpy(values[start : start + parameter.numel()])
            parameter.copy_(part.view(parameter.shape))
            start += parameter.numel()
    return model


def minimiser(g_a: np.ndarray, g_b: np.ndarray, delta: np.ndarray, mu: float, lam: float) -> np.ndarray:
    """The normal equations of ½‖G_A(δ − u)‖² + (λ/2)‖G_B u‖² + (μ/2)‖u‖², in weight space."""
    ridge = mu * (g_a**2).sum(1).mean()
    return np.linalg.solve(g_a.T @ g_a + lam * g_b.T @ g_b + ridge * np.eye(len(delta)), g_a.T @ (g_a @ delta))


@pytest.fixture
def points(before: nn.Module, after: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return flat(before.parameters()), flat(after.parameters())


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def correction(subspace: ConflictSubspace) -> np.ndarray:
    return flat(subspace.correction.values())


def test_is_the_minimiser(
    after: nn.Module,
    delta: Delta,
    points: tuple[np.ndarray, np.ndarray],
    completions: Callable[..., list[Batch]],
    untouched: Any,
) -> None:
    earlier, now = points
    check = untouched(after)
    found = conflict_subspace(
        after, delta, [completions(6), completions(5, seed=1)], [completions(7, seed=2)], mu=1e-3, lam=0.7, passes=1
    )
    check()
    middle = at((earlier + now) / 2)
    g_a = np.concatenate([jacobian(middle, completions(6)), jacobian(middle, completions(5, seed=1))])
    g_b = jacobian(at(now), completions(7, seed=2))
    change = now - earlier
    expected = minimiser(g_a, g_b, change, 1e-3, 0.7)
    u = correction(found)
    assert relative(u, expected) < 1e-3
    assert list(found.correction) == [name for name, _ in after.named_parameters()]
    one = found.passes[0]
    assert (one.restore_rows, one.protect_rows) == (11, 7)
    assert one.damage == pytest.approx(np.linalg.norm(g_a @ change), rel=1e-3)
    assert one.damage_left == pytest.approx(np.linalg.norm(g_a @ (change - expected)), rel=2e-2)
    assert one.side_effect == pytest.approx(np.linalg.norm(g_b @ expected), rel=2e-2)
    assert one.norm_share == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(change), rel=1e-3)
    assert one.damage_left < 0.1 * one.damage
    assert found.norm == pytest.approx(np.linalg.norm(u))
    assert found.to_dict()["passes"][0]["mu"] == pytest.approx(1e-3 * (g_a**2).sum(1).mean(), rel=1e-3)


@pytest.mark.parametrize("form", ["plain", "streamed"])
def test_each_domain_comes_back_from_its_own_stage(
    form: Any,
    after: nn.Module,
    delta: Delta,
    points: tuple[np.ndarray, np.ndarray],
    completions: Callable[..., list[Batch]],
    untouched: Any,
) -> None:
    earlier, now = points
    middle = perturbed(after, 0.03, seed=9)
    since = diff(middle, after)
    check = untouched(after)
    restore, protect = [completions(6), completions(5, seed=1), completions(4, seed=4)], [completions(7, seed=2)]
    found = conflict_subspace(
        after, delta, restore, protect, since=[delta, since, delta], mu=1e-3, lam=0.7, passes=1, form=form, block=3
    )
    check()
    then = flat(middle.parameters())
    sides = [
        (jacobian(at((start + now) / 2), batches), now - start)
        for start, batches in zip((earlier, then, earlier), restore, strict=True)
    ]
    g_a, target = np.concatenate([g for g, _ in sides]), np.concatenate([g @ change for g, change in sides])
    g_b = jacobian(at(now), protect[0])
    ridge = 1e-3 * (g_a**2).sum(1).mean() * np.eye(len(now))
    expected = np.linalg.solve(g_a.T @ g_a + 0.7 * g_b.T @ g_b + ridge, g_a.T @ target)
    assert relative(correction(found), expected) < 1e-3
    assert found.passes[0].damage == pytest.approx(np.linalg.norm(target), rel=1e-3)


def test_narrow_weights_are_moved_by_what_earlier_passes_took_off() -> None:
    """Each step is a hundredth of a unit in the last place: to nearest nothing would move."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16))
    columns = columns_for({"weight": model.weight})
    correction = torch.full((100_000,), 2.0**-7 / 100)
    sources = Sources(model, columns, [], [], "sequence", None, [], [], seed=0, tokenizer=None)
    now = Linearisation(sources, correction, (), Side(None))
    half_way = Linearisation(sources, correction, (Side(torch.zeros(100_000)),), Side(None))
    for at, side, share in ((now, now.protecting, 1.0), (half_way, half_way.restoring[0], 0.5)):
        with at.at(side):
            moved = 1.0 - model.weight.detach().double()
            first = model.weight.detach().clone()
        assert float(moved.mean()) == pytest.approx(share * 2.0**-7 / 100, rel=0.1)
        with at.at(side):
            assert torch.equal(model.weight, first)
    assert bool((model.weight == 1.0).all())


def test_stages_of_their_own_are_checked(
    after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]
) -> None:
    restore = [completions(3), completions(3, seed=1)]
    with pytest.raises(ConfigError, match="a delta for each of 2 domains"):
        conflict_subspace(after, delta, restore, since=[delta])
    with pytest.raises(WrongBaseError):
        conflict_subspace(after, delta, restore, since=[delta, diff(after, perturbed(after, 0.1, seed=3))])
    part = delta.restrict([next(name for name, _ in delta.items())])
    with pytest.raises(ConfigError, match="reaches back farthest"):
        conflict_subspace(after, part, restore, since=[part, delta])


def test_the_correction_brings_the_log_probabilities_back(
    points: tuple[np.ndarray, np.ndarray], after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]
) -> None:
    earlier, now = points
    batch = completions(8, batch_size=8)[0]
    other = completions(8, seed=3, batch_size=8)[0]

    def off(values: np.ndarray, batch: Batch, target: np.ndarray) -> float:
        with torch.no_grad():
            return float(
                (completion_log_probs(at(values).eval(), batch) - completion_log_probs(at(target).eval(), batch)).norm()
            )

    one = correction(conflict_subspace(after, delta, [[batch]], [[other]], mu=1e-5, passes=1))
    two = correction(conflict_subspace(after, delta, [[batch]], [[other]], mu=1e-5, passes=2))
    damage = off(now, batch, earlier)
    assert damage > 0.3
    assert off(now - one, batch, earlier) < 0.15 * damage
    assert off(now - two, batch, earlier) < 0.5 * off(now - one, batch, earlier)
    assert off(now - one, other, now) < 0.15 * off(earlier, other, now)


def test_a_second_pass_linearises_about_the_first_one(
    after: nn.Module,
    delta: Delta,
    points: tuple[np.ndarray, np.ndarray],
    completions: Callable[..., list[Batch]],
    untouched: Any,
) -> None:
    earlier, now = points
    check = untouched(after)
    first = conflict_subspace(after, delta, [completions(6)], [completions(4, seed=2)], mu=1e-2, passes=1)
    both = conflict_subspace(after, delta, [completions(6)], [completions(4, seed=2)], mu=1e-2, passes=2)
    check()
    u = correction(first)
    g_a = jacobian(at((earlier + now - u) / 2), completions(6))
    g_b = jacobian(at(now - u), completions(4, seed=2))
    assert relative(correction(both) - u, minimiser(g_a, g_b, now - u - earlier, 1e-2, 1.0)) < 2e-2
    assert both.passes[0] == first.passes[0]
    assert both.passes[1].damage < first.passes[0].damage


def test_nothing_to_protect(after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]) -> None:
    alone = conflict_subspace(after, delta, [completions(4)])
    unweighted = conflict_subspace(after, delta, [completions(4)], [completions(4, seed=1)], lam=0.0)
    assert alone.passes[0].protect_rows == 0
    assert np.array_equal(correction(alone), correction(unweighted))


def test_probes_estimate_the_damage_of_a_direction(
    after: nn.Module, delta: Delta, points: tuple[np.ndarray, np.ndarray], completions: Callable[..., list[Batch]]
) -> None:
    earlier, now = points
    found = conflict_subspace(after, delta, [completions(12)], passes=1)
    probes = torch.cat(list(found.probes.values()), 1).double().numpy()
    exact = np.linalg.norm(jacobian(at((earlier + now) / 2), completions(12)) @ (now - earlier))
    assert probes.shape == (16, len(now))
    assert np.linalg.norm(probes @ (now - earlier)) == pytest.approx(exact, rel=0.6)


def test_only_tensors_that_changed_are_corrected(before: nn.Module, completions: Callable[..., list[Batch]]) -> None:
    after = tiny_model()
    with torch.no_grad():
        after.get_submodule("model.layers.1.mlp.up_proj").weight[0] += 0.1  # type: ignore[operator, union-attr]
    found = conflict_subspace(after, diff(before, after), [completions(4)])
    assert list(found.correction) == ["model.layers.1.mlp.up_proj.weight"]
    assert found.correction["model.layers.1.mlp.up_proj.weight"].shape == (24, 16)


def test_random_is_the_share_of_the_change_in_a_random_subspace(
    after: nn.Module, delta: Delta, points: tuple[np.ndarray, np.ndarray], completions: Callable[..., list[Batch]]
) -> None:
    earlier, now = points
    change = now - earlier
    found = conflict_subspace(
        after, delta, [completions(4)] * 2, [completions(4)], samples=100, random=True, mu=1e-9, seed=5
    )
    u = correction(found)
    # A projection: u · (δ − u) = 0, and its share of δ is that of its dimension.
    assert abs(u @ (change - u)) < 1e-3 * (u @ u)
    assert (u @ u) / (change @ change) == pytest.approx(200 / len(now), rel=0.5)
    assert found.passes[0].restore_rows == 200
    again = conflict_subspace(after, delta, [[], []], samples=100, random=True, mu=1e-9, seed=5)
    assert np.array_equal(u, correction(again))


def test_same_arguments_same_bits(after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]) -> None:
    prompts = [{k: v for k, v in batch.items() if k != "labels"} | {"max_new_tokens": 4} for batch in completions(6)]
    first, second, other = (conflict_subspace(after, delta, [prompts], [prompts], seed=s) for s in (1, 1, 2))
    assert np.array_equal(correction(first), correction(second))
    assert not np.array_equal(correction(first), correction(other))
    assert first.passes == second.passes


def test_bits_are_back_after_a_fault(
    after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]], untouched: Any
) -> None:
    check = untouched(after)
    ids = torch.full((1, 4), 99)  # no such token
    bad = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with pytest.raises(IndexError):
        conflict_subspace(after, delta, [completions(4), [bad]], [completions(4)])
    check()


@pytest.mark.parametrize(
    "arguments", [{"mu": 0.0}, {"mu": float("nan")}, {"lam": -1.0}, {"passes": 0}, {"samples": 0}, {"restore": []},
                  {"restore": "math"}]
)  # fmt: skip
def test_what_is_refused(
    after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]], arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        conflict_subspace(after, delta, **({"restore": [completions(2)]} | arguments))


def test_wrong_models_and_domains_are_refused(
    before: nn.Module, after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]
) -> None:
    with pytest.raises(EmptyDomainError):
        conflict_subspace(after, delta, [completions(2)], [[]])
    with pytest.raises(WrongBaseError):
        conflict_subspace(before, delta, [completions(2)])
    with pytest.raises(LayoutError):
        conflict_subspace(nn.Linear(2, 2), delta, [completions(2)])


def test_nan_names_the_tensor(
    before: nn.Module, after: nn.Module, completions: Callable[..., list[Batch]], untouched: Any
) -> None:
    with torch.no_grad():
        after.get_submodule("model.norm").weight[3] = torch.nan  # type: ignore[operator, union-attr]
    check = untouched(after)
    with pytest.raises(NonFiniteError, match=r"gradient of 'model\."):
        conflict_subspace(after, diff(before, after), [completions(2)])
    check()


def test_nothing_changed_leaves_nothing_to_correct(after: nn.Module, completions: Callable[..., list[Batch]]) -> None:
    empty = diff(after, after)
    found = conflict_subspace(after, empty, [completions(2)], [completions(2)])
    assert (found.correction, found.passes, found.norm) == ({}, (), 0.0)
    assert conflict(empty, subspace=found).top(fraction=0.5).count == 0
    with rollback(after, empty, found) as undo:
        assert undo.written == 0
