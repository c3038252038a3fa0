"""Predicted damage: held to finite differences of the loss, to its parts, and to itself on other routes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.delta.naming import kind_of
from rlforget.errors import ConfigError, EmptyDomainError, LayoutError, NonFiniteError, ParameterError, UnknownNameError
from rlforget.interference.completions import completed, completion_log_probs, next_token_log_probs, pieces
from rlforget.interference.predicted_damage import Damage, damage
from rlforget.interference.remainder import points_along, remainder_weights
from tests.circuits.attention_layouts import tiny

from .conftest import perturbed, tiny_model

Batch = dict[str, Tensor]
Completions = Callable[..., list[Batch]]


def pair(architecture: str = "gpt2", scale: float = 0.01) -> tuple[nn.Module, nn.Module, Delta]:
    """Before, after and the delta, in float64 where the model computes in it throughout."""
    before = tiny(architecture)
    if architecture == "gpt2":
        before = before.double()
    after = perturbed(before, scale, seed=1)
    return before, after, diff(before, after)


def prompts(count: int, tokens: int = 4) -> list[dict[str, Any]]:
    ids = torch.randint(2, 24, (count, 5), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": tokens}]


def shifted(before: nn.Module, delta: Delta, step: float) -> nn.Module:
    model = copy.deepcopy(before)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in delta.items():
            parameters[name].view(-1)[tensor.indices.long()] += step * tensor.values.to(parameters[name].dtype)
    return model


@torch.no_grad()
def by_differences(before: nn.Module, delta: Delta, batch: Batch, step: float) -> dict[str, Tensor]:
    """Of each completion: −d_x, and the second-order terms, from log-probabilities at θ_A and a step to either side."""
    low, here, high = (next_token_log_probs(shifted(before, delta, s), batch).double() for s in (-step, 0.0, step))
    labels = batch["labels"][:, 1:]
    scored = labels != -100

    def summed(values: Tensor) -> Tensor:
        return (values.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) * scored).sum(1)

    slope, bend = (high - low) / (2 * step), (high - 2 * here + low) / step**2
    p = here.exp()
    variance = (p * slope**2).sum(-1) - (p * slope).sum(-1) ** 2
    return {
        "first": -summed(slope),
        "ggn": (variance * scored).sum(1) / 2,
        "fisher": summed(slope) ** 2 / 2,
        "hessian": -summed(bend) / 2,
    }


def check_estimate(found: tuple[float, float], values: Tensor, rel: float) -> None:
    assert found[0] == pytest.approx(float(values.mean()), rel=rel, abs=rel * float(values.abs().mean()))
    assert found[1] == pytest.approx(float(values.std()) / len(values) ** 0.5, rel=rel)


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "hessian"])
def test_is_what_differences_of_the_loss_say(curvature: Any, completions: Completions, untouched: Any) -> None:
    before, after, delta = pair()
    batch = completions(9, batch_size=9, vocabulary=24)[0]
    expected = by_differences(before, delta, batch, 0.02)
    check = untouched(after.train())
    found = damage(after, delta, completions(9, vocabulary=24), curvature=curvature)
    check()
    check_estimate((found.first, found.first_stderr), expected["first"], 1e-4)
    check_estimate((found.second, found.second_stderr), expected[curvature], 2e-3)
    check_estimate((found.total, found.total_stderr), expected["first"] + expected[curvature], 2e-3)
    assert (found.count, found.curvature, found.parts) == (9, curvature, {})
    assert found.at(0.5) == pytest.approx(found.first / 2 + found.second / 4)


def test_points_along_a_large_change_find_the_rise_itself(completions: Completions) -> None:
    before, after, delta = pair(scale=0.05)
    batches = completions(9, vocabulary=24)

    def rise(step: float) -> float:
        with torch.no_grad():
            log_probs = [completion_log_probs(shifted(before, delta, s), b) for s in (0.0, step) for b in batches]
        there, back = torch.cat(log_probs).double().chunk(2)
        return float((there - back).mean())

    near, far = (damage(after, delta, batches, curvature="hessian", points=points) for points in (1, 5))
    assert abs(far.total - rise(1.0)) < 0.01 * abs(near.total - rise(1.0))
    assert far.at(1.0) == pytest.approx(far.total)
    assert far.at(0.5) == pytest.approx(rise(0.5), rel=0.05)
    assert (near.points, far.points[0], len(far.points)) == ((0.0,), 0.0, 5)
    by_kind = damage(after, delta, batches, points=3, by="kind")
    assert sum(part.row_sum for part in by_kind.parts.values()) == pytest.approx(by_kind.second, rel=1e-5)


@given(st.integers(1, 6), st.floats(0.1, 1.0), st.data())
def test_the_remainder_is_exact_for_polynomials(count: int, t: float, data: st.DataObject) -> None:
    points = points_along(count)
    degree = data.draw(st.integers(0, count - 1 if t < 1.0 else 2 * count - 2))
    weights = remainder_weights(points, t)
    exact = t ** (degree + 2) / ((degree + 1) * (degree + 2))  # ∫₀ᵗ (t − s) sᵈ ds
    assert sum(w * s**degree for w, s in zip(weights, points, strict=True)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("points", "curvature"), [(0, "ggn"), (2, "fisher")])
def test_points_that_say_nothing_are_refused(points: int, curvature: Any, completions: Completions) -> None:
    _, after, delta = pair()
    with pytest.raises(ConfigError, match="points"):
        damage(after, delta, completions(3, vocabulary=24), points=points, curvature=curvature)


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "hessian"])
def test_parts_are_the_damage_of_restricted_deltas(curvature: Any, completions: Completions) -> None:
    before, after, delta = pair()
    batches = completions(5, vocabulary=24)
    found = damage(after, delta, batches, curvature=curvature, by="kind")
    assert set(found.parts) == {kind_of(name) for name in delta}
    for kind, part in found.parts.items():
        alone = copy.deepcopy(before)
        with torch.no_grad():
            for (name, parameter), new in zip(alone.named_parameters(), after.parameters(), strict=True):
                if kind_of(name) == kind:
                    parameter.copy_(new)
        whole = damage(alone, diff(before, alone), batches, curvature=curvature)
        assert part.first == pytest.approx(whole.first, rel=1e-5)
        assert part.second == pytest.approx(whole.second, rel=1e-5)
        assert part.second_stderr == pytest.approx(whole.second_stderr, rel=1e-5)
    assert sum(part.first for part in found.parts.values()) == pytest.approx(found.first, rel=1e-5)
    assert sum(part.row_sum for part in found.parts.values()) == pytest.approx(found.second, rel=1e-5)
    apart = sum(part.second for part in found.parts.values())
    assert abs(apart - found.second) > 1e-3 * abs(found.second)  # they overlap, so alone they do not add up


def test_groups_by_layer_and_by_tensor(completions: Completions) -> None:
    _, after, delta = pair("qwen2")
    layers = damage(after, delta, completions(3, vocabulary=24), by="layer").parts
    assert list(layers) == ["outside", "0", "1"]
    tensors = damage(after, delta, completions(3, vocabulary=24), by="tensor").parts
    assert list(tensors) == [name for name, tensor in delta.items() if tensor.changed]
    inside = sum(part.row_sum for name, part in tensors.items() if ".layers.1." in name)
    assert inside == pytest.approx(layers["1"].row_sum, rel=1e-3, abs=1e-6)


def test_the_curvatures_agree_where_the_old_model_samples() -> None:
    """E[−∇² log π] = E[∇ log π ∇ log πᵀ], and E[∇ log π] = 0: only so if completions come from θ_A."""
    _, after, delta = pair(scale=0.02)
    found = {c: damage(after, delta, prompts(400), curvature=c, samples=400) for c in ("ggn", "fisher", "hessian")}
    ggn = found["ggn"]
    assert ggn.second > 20 * ggn.second_stderr > 0
    assert abs(ggn.first) < 3.5 * ggn.first_stderr
    for curvature in ("fisher", "hessian"):
        other = found[curvature]
        assert abs(other.second - ggn.second) < 3.5 * (other.second_stderr**2 + ggn.second_stderr**2) ** 0.5
    assert ggn.second_stderr < found["fisher"].second_stderr


def test_completions_come_from_the_old_weights() -> None:
    before, after, delta = pair("qwen2", scale=0.3)
    given = list(completed(before, prompts(6), seed=3, tokenizer=None))
    sampled = damage(after, delta, prompts(6), seed=3)
    assert sampled == damage(after, delta, given)
    assert sampled != damage(after, delta, prompts(6), seed=4)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_parameters_count_once(tied: bool, completions: Completions) -> None:
    before = tiny_model(tied=tied).eval()
    after = perturbed(before, 0.01, seed=1)
    delta = diff(before, after)
    batch = completions(6, batch_size=6)[0]
    expected = by_differences(before, delta, batch, 0.2)
    found = damage(after, delta, [batch], by="kind")
    check_estimate((found.first, found.first_stderr), expected["first"], 0.02)
    check_estimate((found.second, found.second_stderr), expected["ggn"], 0.02)
    assert sum(part.row_sum for part in found.parts.values()) == pytest.approx(found.second, rel=1e-3)


def test_bfloat16_is_close_to_float32(completions: Completions) -> None:
    before, after, _ = pair("llama", scale=0.1)
    low = diff(before.to(torch.bfloat16), after.to(torch.bfloat16))
    found = damage(after, low, completions(8, vocabulary=24))
    wide = after.float()
    exact = damage(wide, diff(before.float(), wide), completions(8, vocabulary=24))
    assert found.second == pytest.approx(exact.second, rel=0.1)


def test_pieces_make_no_difference(completions: Completions, monkeypatch: pytest.MonkeyPatch) -> None:
    _, after, delta = pair()
    whole = damage(after, delta, completions(6, batch_size=6, vocabulary=24))
    monkeypatch.setattr("rlforget.interference.completions._BYTES_AT_ONCE", 2000)
    assert len(list(pieces(after, completions(6, batch_size=6, vocabulary=24)[0]))) > 1
    split = damage(after, delta, completions(6, batch_size=6, vocabulary=24))
    assert split.second == pytest.approx(whole.second, rel=1e-6)
    assert split.count == 6


def test_a_model_without_forward_mode_is_differentiated_backward(completions: Completions) -> None:
    before, after, delta = pair("bloom")
    batch = completions(4, vocabulary=24)[0]
    expected = by_differences(before, delta, batch, 0.2)
    for curvature in ("ggn", "hessian"):
        found = damage(after, delta, [batch], curvature=curvature, by="layer")  # type: ignore[arg-type]
        check_estimate((found.second, found.second_stderr), expected[curvature], 0.05)
        assert sum(part.row_sum for part in found.parts.values()) == pytest.approx(found.second, rel=1e-3)


def test_what_it_becomes_in_json(completions: Completions) -> None:
    _, after, delta = pair()
    found = damage(after, delta, completions(3, vocabulary=24), by="kind")
    plain = found.to_dict()
    assert plain["parts"]["mlp"]["second"] == found.parts["mlp"].second
    assert Damage(**{**plain, "parts": found.parts}) == found


def test_frozen_and_quantised_tensors_are_named(completions: Completions) -> None:
    before, after, delta = pair()
    name, parameter = next((n, p) for n, p in after.named_parameters() if "mlp" in n)
    parameter.requires_grad_(False)
    batches = completions(3, vocabulary=24)
    with pytest.raises(ParameterError, match=rf"{name}.*frozen"):
        damage(after, delta, batches)
    found = damage(after, delta, batches, frozen="skip", by="tensor")
    assert found.skipped == (name,)
    assert name not in found.parts
    parameter.requires_grad_(True)
    assert damage(after, delta, batches, by="tensor").skipped == ()
    for model in (before, after):
        model.register_buffer("packed", torch.tensor([1, 2], dtype=torch.uint8))
    after.get_buffer("packed").add_(1)
    with pytest.raises(ParameterError, match=r"packed.*quantised"):
        damage(after, diff(before, after), batches)
    assert damage(after, diff(before, after), batches, frozen="skip").skipped == ("packed",)


def test_what_is_refused(completions: Completions, untouched: Any) -> None:
    before, after, delta = pair()
    batches = completions(2, vocabulary=24)
    check = untouched(after)
    with pytest.raises(UnknownNameError, match="ggn"):
        damage(after, delta, batches, curvature="kfac")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="layer"):
        damage(after, delta, batches, by="head")  # type: ignore[arg-type]
    with pytest.raises(EmptyDomainError):
        damage(after, delta, [])
    with pytest.raises(LayoutError):
        damage(tiny("llama"), delta, batches)
    check()
    with torch.no_grad():
        dict(before.named_parameters())["transformer.h.1.ln_2.bias"][0] = torch.nan
    spoilt = diff(before, after)
    with pytest.raises(NonFiniteError, match=r"transformer\.h\.1\.ln_2\.bias"):
        damage(after, spoilt, batches)
    with pytest.raises(NonFiniteError, match=r"transformer\.h\.1\.ln_2\.bias"):
        damage(after, spoilt, prompts(2))
    check()
