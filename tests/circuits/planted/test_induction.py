"""A trained circuit with a saturated reader: where one gradient has the wrong sign, and integration mends it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from rlforget.circuits import find

from .ablations import answers, effects, tokens
from .induction import HEADS, Kind, load, previous_token_share, task, train

METRICS = ("log_prob_difference", "log_prob")
each_metric = pytest.mark.parametrize("metric", METRICS)


@cache
def trained() -> Any:
    return load()


@cache
def exact(metric: str, kind: Kind = "broken") -> Tensor:
    """Return every head's effect, by one hooked forward each."""
    return effects(trained(), task(kind), "resample", HEADS, metric)[1]


@cache
def scores(method: str, metric: str, kind: Kind = "broken") -> Tensor:
    return find(trained(), task(kind), method, metric=metric, batch_size=64).scores


def previous_token_heads(model: Any) -> list[int]:
    """Return the heads of layer 0 that give the token before at least 0.4 of their attention."""
    return (previous_token_share(model, task("broken"))[0] > 0.4).nonzero().flatten().tolist()


def test_the_model_continues_what_it_never_saw() -> None:
    for kind in ("broken", "traded"):
        pairs = task(kind)
        assert float((answers(trained(), pairs) == tokens(pairs)["target"]).float().mean()) > 0.99


def test_the_two_largest_effects_sit_on_previous_token_heads_of_layer_0() -> None:
    heads = previous_token_heads(trained())
    assert len(heads) == 2
    largest = exact("log_prob").flatten().topk(2).indices.tolist()
    assert set(largest) == set(heads)  # a flat index below HEADS is in layer 0


def test_in_log_probability_differences_layer_1_comes_between_them() -> None:
    """There a head that copies counts twice: it brings the target, and the counterfactual's answer when replaced."""
    heads = previous_token_heads(trained())
    found = exact("log_prob_difference")
    assert set(found[0].topk(2).indices.tolist()) == set(heads)
    assert int(found.argmax()) in heads


@each_metric
def test_patching_is_exact(metric: str) -> None:
    torch.testing.assert_close(scores("patching", metric), exact(metric), rtol=1e-3, atol=1e-3)


@each_metric
def test_one_gradient_has_the_wrong_sign_there(metric: str) -> None:
    """Layer 1 attends so surely that, at the clean prompt, a little more or less of what it goes by changes nothing."""
    found = scores("attribution", metric)
    for head in previous_token_heads(trained()):
        assert float(found[0, head]) < 0 < float(exact(metric)[0, head])


@each_metric
def test_integrated_gradients_have_the_right_sign_and_order(metric: str) -> None:
    found, expected = scores("eap-ig", metric), exact(metric)
    for mine, right in zip(found, expected, strict=True):
        matter = right > 0.05 * expected.max()
        assert bool((mine[matter] > 0).all())
        assert torch.equal(mine[matter].argsort(), right[matter].argsort())


def test_sizes_are_not_mended_across_layers() -> None:
    """What remains: beside layer 1, integrated gradients count layer 0 for less than it is worth."""
    for metric in METRICS:
        found, expected = scores("eap-ig", metric), exact(metric)
        assert float(found[0].sum() / found[1].sum()) < 0.8 * float(expected[0].sum() / expected[1].sum())


def test_the_sign_is_mended_whatever_breaks_the_repetition() -> None:
    one, many = (scores(method, "log_prob_difference", "traded")[0] for method in ("attribution", "eap-ig"))
    right = exact("log_prob_difference", "traded")[0]
    for head in previous_token_heads(trained()):
        assert float(one[head]) < 0 < float(many[head])
    assert int(many.argmax()) == int(right.argmax())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_training_ends_so(seed: int) -> None:
    """The recipe, from nothing: what holds whichever head takes which part."""
    model, pairs = train(seed), task("broken")
    assert float((answers(model, pairs) == tokens(pairs)["target"]).float().mean()) > 0.95
    expected = effects(model, pairs, "resample", HEADS, "log_prob")[1]
    head = int(expected.argmax())
    assert head in previous_token_heads(model)
    one, many = (find(model, pairs, method).scores[0] for method in ("attribution", "eap-ig"))
    assert float(one[head]) < 0 < float(many[head])
    assert int(many.argmax()) == head
