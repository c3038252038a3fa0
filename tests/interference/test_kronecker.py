"""The Kronecker rule against the dense solution of its quadratic, and its moments against autograd's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, EmptyDomainError, NonFiniteError, ParameterError, WrongBaseError
from rlforget.interference import covariance, kronecker_rule
from rlforget.interference.completions import completion_log_probs
from rlforget.interference.covariance import Covariance
from rlforget.interference.kronecker import _solve
from rlforget.interference.moments import Moments
from rlforget.recovery import rollback

from .conftest import tiny_model

Batch = dict[str, Tensor]
Make = Callable[..., list[Batch]]
UP = "model.layers.1.mlp.up_proj.weight"


def drawn(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, width)  # some directions matter more
    mixed = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) * spread @ mixed


def covariance_of(vectors: Tensor) -> Covariance:
    found = Covariance(vectors.shape[1], vectors.device)
    found.add_(vectors[:5])
    found.add_(vectors[5:])
    found.scale_(1 / len(vectors))
    return found


def moments(rows: int, columns: int, seed: int) -> Moments:
    return Moments(covariance_of(drawn(40, rows, seed)), covariance_of(drawn(40, columns, seed + 1)))


def dense(one: Covariance) -> np.ndarray:
    return (one @ torch.eye(one.width, dtype=torch.float64)).numpy()


def damped(one: Covariance, damping: float) -> np.ndarray:
    whole = dense(one)
    return whole + damping * np.trace(whole) / len(whole) * np.eye(len(whole))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 1000),
    st.sampled_from([0.03, 1.0]),
    st.sampled_from([0.1, 1.0]),
)
def test_the_correction_is_the_minimiser(rows: int, columns: int, seed: int, lam: float, damping: float) -> None:
    earlier, later = moments(rows, columns, seed), moments(rows, columns, seed + 2)
    change = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layer = _solve("w", change, earlier, later, lam=lam, damping=damping)
    h_a = np.kron(dense(earlier.rows), dense(earlier.columns))
    h_b = np.kron(damped(later.rows, damping), damped(later.columns, damping))
    delta = change.numpy().ravel()
    u = np.linalg.solve(h_a + lam * h_b, h_a @ delta)
    found = layer.correction(change.float()).double().numpy().ravel()
    np.testing.assert_allclose(found, u, rtol=1e-2, atol=1e-2 * np.abs(u).max())  # float32 bases

    def lost(u: np.ndarray) -> float:
        return float((delta - u) @ h_a @ (delta - u) + lam * u @ h_b @ u)

    assert lost(found) <= lost(u) + 1e-6 * lost(0 * u)
    assert layer.damage == pytest.approx(0.5 * delta @ h_a @ delta, rel=1e-6)
    left = delta - u
    assert layer.damage_left == pytest.approx(0.5 * left @ h_a @ left, rel=1e-2, abs=1e-5 * layer.damage)
    plain = np.kron(dense(later.rows), dense(later.columns))
    assert layer.side_effect == pytest.approx(0.5 * u @ plain @ u, rel=1e-2, abs=1e-5 * layer.damage)


def test_without_protection_the_damping_alone_holds_back() -> None:
    earlier = moments(4, 3, 0)
    change = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = _solve("w", change, earlier, None, lam=0.5, damping=0.2)
    ridges = [0.2 * one.mean for one in earlier]
    h_a = np.kron(dense(earlier.rows), dense(earlier.columns))
    u = np.linalg.solve(h_a + 0.5 * ridges[0] * ridges[1] * np.eye(12), h_a @ change.numpy().ravel())
    np.testing.assert_allclose(layer.correction(change.float()).numpy().ravel(), u, rtol=1e-3, atol=1e-5)
    assert layer.side_effect == 0.0


@pytest.mark.parametrize("faint", [1e-6, 1e-10])
def test_a_protected_domain_that_hardly_has_gradients_any_more_lets_no_rounding_through(faint: float) -> None:
    earlier = Moments(covariance_of(drawn(6, 24, 0)), covariance_of(drawn(6, 20, 1)))  # of rank 6
    later = Moments(covariance_of(faint * drawn(40, 24, 2)), covariance_of(drawn(40, 20, 3)))
    change = torch.randn(24, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    layer = _solve("w", change, earlier, later, lam=0.3, damping=0.3)
    assert float(layer.correction(change.float()).norm()) < 2 * float(change.norm())
    assert layer.damage_left < 1e-3 * layer.damage


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance, "WIDE", 10)
    monkeypatch.setattr(covariance, "RANK", 6)
    monkeypatch.setattr(covariance, "_OVERSAMPLING", 4)
    covariance._test_matrix.cache_clear()


@pytest.mark.usefixtures("wide")
def test_a_sketch_of_low_rank_is_exact_and_the_diagonal_always() -> None:
    vectors = drawn(40, 5, 0) @ torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    found = covariance_of(vectors)
    assert found.wide
    exact = (vectors.double().T @ vectors.double() / len(vectors)).numpy()
    np.testing.assert_allclose(dense(found), exact, atol=1e-5 * np.abs(exact).max())
    full = covariance_of(torch.randn(40, 30, generator=torch.Generator().manual_seed(2)) + 3 * vectors)
    assert np.trace(dense(full)) == pytest.approx(30 * full.mean, rel=0.05)
    assert np.linalg.eigvalsh(dense(full)).min() >= -1e-6
    nothing = Covariance(30, torch.device("cpu"))
    assert float((nothing @ torch.ones(30, 2, dtype=torch.float64)).abs().max()) == 0.0


@pytest.mark.usefixtures("wide")
def test_wide_ones_are_minimised_over_the_span_of_their_leading_directions() -> None:
    earlier, later = moments(30, 7, 0), moments(30, 7, 2)
    assert earlier.rows.wide
    assert not earlier.columns.wide
    change = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = _solve("w", change, earlier, later, lam=0.3, damping=0.3)
    assert layer.write[0].shape == (30, 12)
    u = layer.correction(change.float()).double().numpy()
    p, q = (one.double().numpy() for one in layer.write)
    pull = dense(earlier.rows) @ (change.numpy() - u) @ dense(earlier.columns)
    push = 0.3 * damped(later.rows, 0.3) @ u @ damped(later.columns, 0.3)
    # The sketch's own mean is the exact one's: the damping is the same.
    assert np.abs(p.T @ (pull - push) @ q).max() <= 2e-2 * np.abs(p.T @ pull @ q).max()
    assert 0 < layer.damage_left < layer.damage


def traced(model: nn.Module, name: str, batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """R and C of one weight by autograd: of the positions whose output takes a gradient."""
    model.eval()
    layer = model.get_submodule(name.removesuffix(".weight"))
    inputs, outputs, rows = [], [], 0

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        inputs.append(args[0].detach())
        outputs.append(output)

    hook = layer.register_forward_hook(keep)
    for batch in batches:
        completion_log_probs(model, batch).sum().backward()
        rows += batch["input_ids"].shape[0]
    hook.remove()
    model.zero_grad()
    x = torch.cat([one.flatten(0, 1) for one in inputs]).double()
    y = torch.cat([one.grad.flatten(0, 1) for one in outputs]).double()  # type: ignore[union-attr]
    used = y.ne(0).any(1)
    return (y.T @ y / rows).numpy(), (x[used].T @ x[used] / int(used.sum())).numpy()


def halfway(before: nn.Module, after: nn.Module) -> nn.Module:
    middle = tiny_model()
    with torch.no_grad():
        for old, new, found in zip(before.parameters(), after.parameters(), middle.parameters(), strict=True):
            found.copy_(new - 0.5 * (new - old))
    return middle


def test_the_moments_are_those_of_the_model(
    before: nn.Module, after: nn.Module, delta: Delta, completions: Make, untouched: Any
) -> None:
    a, b = completions(6, seed=1), completions(7, seed=2)
    check = untouched(after)
    rule = kronecker_rule(after, delta, [a[:1], a[1:]], [b], samples=7, lam=0.2, damping=0.5)
    check()
    r_a, c_a = traced(halfway(before, after), UP, a)
    r_b, c_b = traced(after, UP, b)
    change = (dict(after.named_parameters())[UP] - dict(before.named_parameters())[UP]).detach().double().numpy()
    layer = rule.layers[UP]
    assert layer.damage == pytest.approx(0.5 * (change * (r_a @ change @ c_a)).sum(), rel=1e-3)
    damp = [0.5 * np.trace(one) / len(one) * np.eye(len(one)) for one in (r_b, c_b)]
    h_a, h_b = np.kron(r_a, c_a), np.kron(r_b + damp[0], c_b + damp[1])
    u = np.linalg.solve(h_a + 0.2 * h_b, h_a @ change.ravel()).reshape(change.shape)
    found = layer.correction(torch.from_numpy(change).float()).numpy()
    np.testing.assert_allclose(found, u, rtol=1e-2, atol=1e-3 * np.abs(u).max())
    again = kronecker_rule(after, delta, [a[:1], a[1:]], [b], samples=7, lam=0.2, damping=0.5)
    assert torch.equal(again.layers[UP].read[0], layer.read[0])


def test_weights_of_domains(after: nn.Module, delta: Delta, completions: Make) -> None:
    """Weight 3 is the same as three times over, but for what a completion counts."""
    a, b = completions(4, seed=1), completions(4, seed=2)
    weighed = kronecker_rule(after, delta, [a, b], restore_weights=[3.0, 1.0])
    repeated = kronecker_rule(after, delta, [a, a, a, b])
    for name, layer in weighed.layers.items():  # averaged over 8 completions and over 16
        assert layer.damage == pytest.approx(2 * repeated.layers[name].damage, rel=1e-3)
    with pytest.raises(ConfigError, match="restore_weights"):
        kronecker_rule(after, delta, [a, b], restore_weights=[1.0])


def test_what_it_covers(after: nn.Module, delta: Delta, completions: Make) -> None:
    rule = kronecker_rule(after, delta, [completions(4)], lam=0.2)
    assert len(rule.layers) == 14
    assert set(rule.uncovered) == {name for name, _ in after.named_parameters() if name not in rule.layers}
    assert "model.embed_tokens.weight" in rule.uncovered  # tied to the head
    assert sum(rule.damage_shares.values()) == pytest.approx(1.0)
    told = rule.to_dict()
    assert told["layers"][UP]["share"] == rule.damage_shares[UP]
    assert all(layer.damage_left < layer.damage for layer in rule.layers.values())
    untied, other = tiny_model(tied=False), tiny_model(1, tied=False)
    assert "lm_head.weight" in kronecker_rule(other, diff(untied, other), [completions(4)]).layers
    dict(after.named_parameters())[UP].requires_grad_(False)
    with pytest.raises(ParameterError, match="up_proj"):
        kronecker_rule(after, delta, [completions(4)])
    assert UP not in kronecker_rule(after, delta, [completions(4)], frozen="skip").layers


def test_a_transposed_layer(completions: Make) -> None:
    """GPT-2 keeps its weights the other way round: rows meet the inputs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=13, n_positions=16, n_embd=8, n_layer=1, n_head=2, pad_token_id=0, eos_token_id=1)
    before = GPT2LMHeadModel(config)
    after = GPT2LMHeadModel(config)
    delta = diff(before, after)
    rule = kronecker_rule(after, delta, [completions(4)], [completions(4, seed=1)])
    name = "transformer.h.0.mlp.c_fc.weight"
    assert rule.layers[name].read[0].shape[0] == 8
    assert rule.layers[name].read[1].shape[0] == 32
    with rollback(after, delta, rule) as undo:
        assert undo.written > 0


def loss(model: nn.Module, batches: list[Batch]) -> float:
    model.eval()
    with torch.no_grad():
        return -float(torch.cat([completion_log_probs(model, batch) for batch in batches]).mean())


def test_it_undoes_damage_and_is_undone_to_the_bit(
    after: nn.Module, delta: Delta, completions: Make, untouched: Any
) -> None:
    a, b = completions(16, seed=1), completions(16, seed=2)
    rule = kronecker_rule(after, delta, [a], [b], lam=0.1)
    held = {name: value.clone() for name, value in after.state_dict().items()}
    check = untouched(after)
    with rollback(after, delta, rule, strength=0.5) as undo:
        for name, layer in rule.layers.items():
            old = held[name] - dense_change(delta, name)
            u = layer.correction(held[name] - old)
            torch.testing.assert_close(after.state_dict()[name], held[name] - 0.5 * u, rtol=1e-5, atol=1e-6)
        assert undo.report.rounding is not None
        assert undo.report.rounding < 1e-3
        assert 0 < undo.report.norm_share < 0.5
    after.train()
    check()


def dense_change(delta: Delta, name: str) -> Tensor:
    change = torch.zeros(delta[name].numel)
    change[delta[name].indices.long()] = delta[name].values
    return change.view(delta[name].shape)


def test_in_bfloat16_rounding_is_stochastic(completions: Make) -> None:
    before = tiny_model().to(torch.bfloat16)
    after = tiny_model().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in after.parameters():  # one step in the last place, as RL's updates are
            step = torch.randint(-1, 2, parameter.shape, dtype=torch.int16)
            parameter.view(torch.int16).add_(torch.where(parameter == 0, 0, step))
    delta = diff(before, after)
    rule = kronecker_rule(after, delta, [completions(8, seed=1)], [completions(8, seed=2)])
    held = {name: value.clone() for name, value in after.state_dict().items()}
    means = []
    for seed in range(40):
        with rollback(after, delta, rule, seed=seed) as undo:
            means.append(held[UP].float() - after.state_dict()[UP].float())
            assert undo.report.rounding is not None
            assert 0.1 < undo.report.rounding < 10
    assert all(torch.equal(after.state_dict()[name], value) for name, value in held.items())
    mean = torch.stack(means).mean(0)
    u = rule.layers[UP].correction(dense_change(delta, UP))
    assert not torch.equal(means[0], means[1])
    cosine = torch.nn.functional.cosine_similarity(mean.flatten(), u.flatten(), dim=0)
    assert float(cosine) > 0.8  # each draw is off by more than u itself; their mean is not
    nearest = held[UP].float() - (held[UP].float() - u).to(torch.bfloat16).float()
    assert float((mean - u).norm()) < float((nearest - u).norm())


def test_what_is_refused(before: nn.Module, after: nn.Module, delta: Delta, completions: Make, untouched: Any) -> None:
    a = completions(4)
    check = untouched(after)
    for arguments, match in (
        ({"lam": 0.0}, "lam"),
        ({"lam": float("nan")}, "lam"),
        ({"damping": -1.0}, "damping"),
        ({"samples": 0}, "samples"),
    ):
        with pytest.raises(ConfigError, match=match):
            kronecker_rule(after, delta, [a], **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="restore"):
        kronecker_rule(after, delta, [])
    with pytest.raises(EmptyDomainError):
        kronecker_rule(after, delta, [[]])
    with pytest.raises(WrongBaseError):
        kronecker_rule(before, delta, [a])
    check()
    broken = tiny_model()
    with torch.no_grad():
        dict(broken.named_parameters())[UP][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"model\.layers"):
        kronecker_rule(broken, diff(before, broken), [a])
