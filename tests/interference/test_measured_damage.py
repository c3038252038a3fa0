"""The measured damage: losses and divergences of separate copies at every point, and what `damage` predicts of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, NonFiniteError, ParameterError
from rlforget.interference.completions import completed, completion_log_probs
from rlforget.interference.divergence import kl_divergence
from rlforget.interference.measured_damage import damage_curve
from rlforget.interference.predicted_damage import damage

from .conftest import perturbed, tiny_model

Batch = dict[str, Tensor]
Completions = Callable[..., list[Batch]]


@pytest.fixture
def whole() -> tuple[nn.Module, nn.Module, Delta]:
    """Before, after and the delta of a model whose padding token has an embedding like any other."""
    before = tiny_model().eval()
    with torch.no_grad():
        before.get_input_embeddings().weight[0] = 0.3  # type: ignore[operator]
    after = perturbed(before, 0.02, seed=1)
    return before, after, diff(before, after)


def prompts(count: int, tokens: int = 4) -> list[dict[str, Any]]:
    ids = torch.randint(2, 13, (count, 5), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": tokens}
    return [{k: v if isinstance(v, int) else v[s : s + 64] for k, v in batch.items()} for s in range(0, count, 64)]


def between(before: nn.Module, after: nn.Module, t: float) -> nn.Module:
    model = copy.deepcopy(before)
    with torch.no_grad():
        for parameter, new in zip(model.parameters(), after.parameters(), strict=True):
            parameter.copy_(parameter + t * (new - parameter))
    return model.eval()


def test_is_the_loss_of_copies_at_every_point(whole: Any, completions: Completions, untouched: Any) -> None:
    before, after, delta = whole
    check = untouched(after.train())
    found = damage_curve(after, delta, completions(7), t=(0, 0.3, 1))
    check()

    @torch.no_grad()
    def losses(model: nn.Module) -> Tensor:
        return -torch.cat([completion_log_probs(model, batch) for batch in completions(7)]).double()

    start = losses(before)
    assert found.loss == pytest.approx(float(start.mean()), rel=1e-6)
    assert (found.t, found.rise[0], found.kl[0].mean, found.count) == ((0.0, 0.3, 1.0), 0.0, 0.0, 7)
    for position, t in ((1, 0.3), (2, 1.0)):
        rise = losses(between(before, after, t)) - start
        assert found.rise[position] == pytest.approx(float(rise.mean()), abs=2e-6)
        assert found.rise_stderr[position] == pytest.approx(float(rise.std()) / 7**0.5, abs=2e-6)
        kl = kl_divergence(before, between(before, after, t), completions(7))
        assert found.kl[position].mean == pytest.approx(kl.mean, abs=2e-6)
    reverse = kl_divergence(after, before, completions(7))
    assert found.reverse.mean == pytest.approx(reverse.mean, abs=2e-6)
    assert found.reverse.mean != pytest.approx(found.kl[2].mean, rel=1e-3)


def test_completions_are_each_sides_own(whole: Any) -> None:
    before, after, delta = whole
    found = damage_curve(after, delta, prompts(6), t=[1.0], seed=3)
    assert found.kl[0].mean == pytest.approx(kl_divergence(before, after, prompts(6), seed=3).mean, abs=1e-6)
    assert found.reverse.mean == pytest.approx(kl_divergence(after, before, prompts(6), seed=3).mean, abs=1e-6)
    assert found == damage_curve(after, delta, prompts(6), t=[1.0], seed=3)
    given = list(completed(before, prompts(6), seed=3))
    assert damage_curve(after, delta, given, t=[1.0]).rise == found.rise


def test_a_small_change_does_what_is_predicted(whole: Any) -> None:
    _, after, delta = whole
    asked: dict[str, Any] = {"samples": 128, "seed": 1}
    predicted = damage(after, delta, prompts(128), **asked)
    measured = damage_curve(after, delta, prompts(128), **asked)
    assert predicted.count == measured.count == 128
    assert predicted.second > 5 * predicted.second_stderr
    for t, rise, kl in zip(measured.t, measured.rise, measured.kl, strict=True):
        assert predicted.at(t) == pytest.approx(rise, abs=0.2 * predicted.second)
        assert t * t * predicted.second == pytest.approx(kl.mean, abs=0.15 * predicted.second)


def test_the_ends_are_exact_in_bfloat16(completions: Completions) -> None:
    before, after = tiny_model().to(torch.bfloat16), perturbed(tiny_model(), 0.05, seed=2).to(torch.bfloat16)
    found = damage_curve(after, diff(before, after), completions(5), t=[0.0, 1.0])
    assert found.kl[1].mean == pytest.approx(kl_divergence(before, after, completions(5)).mean, rel=1e-6)


def test_what_is_refused(whole: Any, completions: Completions, untouched: Any) -> None:
    before, after, delta = whole
    check = untouched(after)
    for t in ((), (0.5, 1.5), (float("nan"),)):
        with pytest.raises(ConfigError, match="0 to 1"):
            damage_curve(after, delta, completions(2), t=t)
    with torch.no_grad():
        before.model.norm.weight[0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        damage_curve(after, diff(before, after), completions(2))
    check()
    after.model.norm.weight.requires_grad_(False)
    with pytest.raises(ParameterError, match=r"model\.norm\.weight"):
        damage_curve(after, delta, completions(2))
    assert damage_curve(after, delta, completions(2), frozen="skip").skipped == ("model.norm.weight",)
