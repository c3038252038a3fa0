"""Whether updates and gradients work together: against the plain way, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rlforget as rf
from rlforget.domains import Domain
from rlforget.domains.base import Example, Split
from rlforget.domains.miniature.tokenizer import build_tokenizer
from rlforget.errors import ConfigError, LayoutError, NonFiniteError
from rlforget.interference.alignment import Alignment, in_order
from rlforget.interference.completions import completed, completion_log_probs
from tests.interference.conftest import Batch, perturbed, tiny_model

Completions = Callable[..., list[Batch]]
Untouched = Callable[[nn.Module], Callable[[], None]]


class Letters(Domain):
    """Write letters after "A"; the reward is the share of them that are before N."""

    name, max_new_tokens = "letters", 3

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        return [Example("ABCD"[: 1 + i % 4], "A") for i in range(count)]

    def reward(self, example: Example, completion: str) -> float:
        return sum(letter < "N" for letter in completion) / max(1, len(completion))


class Constant(Letters):
    name = "constant"

    def reward(self, example: Example, completion: str) -> float:
        return 0.5


def speaking_model() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def cosine(one: dict[str, Tensor], other: dict[str, Tensor], prefix: str = "") -> float:
    first, second = (
        torch.cat([value.flatten() for name, value in side.items() if name.startswith(prefix)]).double()
        for side in (one, other)
    )
    return float(first @ second / first.norm() / second.norm())


def dense(delta: rf.Delta, kept: rf.Coordinates | None = None) -> dict[str, Tensor]:
    found = {}
    for name, tensor in delta.items():
        found[name] = torch.zeros(tensor.numel, dtype=torch.float64)
        found[name][tensor.indices.long()] = tensor.values.double()
        if kept is not None:
            mask = torch.zeros(tensor.numel, dtype=torch.float64)
            mask[kept.get(name, torch.empty(0, dtype=torch.int64))] = 1
            found[name] *= mask
    return found


def test_two_updates_are_compared_everywhere_and_on_the_route(before: nn.Module, completions: Completions) -> None:
    one, other = (rf.diff(before, perturbed(before, 0.02, seed)) for seed in (1, 2))
    route = rf.routes(before, completions(4)).top(0.3)
    found = rf.synergy(one, other, route)
    assert found.total.cosine == pytest.approx(cosine(dense(one), dense(other)))
    on_route = [dense(delta, route.coordinates(delta)) for delta in (one, other)]
    assert found.on_route.cosine == pytest.approx(cosine(*on_route))
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"):
        assert found.everywhere[name].cosine == pytest.approx(cosine(dense(one), dense(other), f"{name}."))
        assert found.route[name].cosine == pytest.approx(cosine(*on_route, f"{name}."))
    assert set(found.route) < set(found.everywhere)
    assert rf.synergy(one, other).route == {}
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_update_works_with_itself_and_against_its_inverse(before: nn.Module, after: nn.Module) -> None:
    delta = rf.diff(before, after)
    assert rf.synergy(delta, delta).total.cosine == pytest.approx(1)
    assert all(one.cosine == pytest.approx(-1) for one in rf.synergy(delta, delta.invert()).everywhere.values())


def test_deltas_of_other_models_are_refused(before: nn.Module, after: nn.Module) -> None:
    with pytest.raises(LayoutError):
        rf.synergy(rf.diff(before, after), rf.diff({"w": torch.zeros(2)}, {"w": torch.ones(2)}))


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=20), cut=st.integers(0, 20))
def test_alignments_of_parts_add_up(values: list[tuple[float, float]], cut: int) -> None:
    one, other = torch.tensor(values, dtype=torch.float64).unbind(1)
    whole = Alignment.of(one, other)
    parts = Alignment.total([Alignment.of(one[:cut], other[:cut]), Alignment.of(one[cut:], other[cut:])])
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-9)
    assert parts.common == whole.common
    assert -1 <= whole.cosine <= 1


def test_modules_are_ordered_from_conflict_to_synergy() -> None:
    modules = {
        "with": Alignment(1, 1, 1, 1),
        "silent": Alignment(0, 0, 1, 0),
        "against": Alignment(-1, 1, 1, 1),
        "apart": Alignment(0, 1, 1, 1),
    }
    assert in_order(modules) == ["against", "apart", "with"]


def test_gradients_of_given_completions_are_those_of_their_loss(completions: Completions, untouched: Untouched) -> None:
    model = tiny_model().train()
    first, second = completions(6, seed=1), completions(9, seed=2, batch_size=5)
    check = untouched(model)
    found = rf.gradient_alignment(model, first, second)
    check()
    plain = []
    for batches in (first, second):
        copied = copy.deepcopy(model).eval()
        scores = torch.cat([completion_log_probs(copied, batch) for batch in batches])
        plain.append(gradients(copied, -scores.mean()))
    assert found.samples == (6, 9)
    assert found.total.cosine == pytest.approx(cosine(*plain), rel=1e-4)
    for name, one in found.modules.items():
        assert one.cosine == pytest.approx(cosine(*plain, f"{name}."), rel=1e-3, abs=1e-4), name
    assert set(found.modules) == {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    conflicting, working = found.most(100)
    assert [found.modules[name].cosine for name in conflicting] == sorted(
        one.cosine for one in found.modules.values() if one.cosine < 0
    )
    assert all(found.modules[name].cosine > 0 for name in working)
    json.dumps(found.to_dict(), allow_nan=False)


def test_gradients_of_a_domain_are_those_of_its_reward(completions: Completions) -> None:
    model, tokenizer = speaking_model(), build_tokenizer()
    found = rf.gradient_alignment(model, Letters(), Letters(), samples=20, tokenizer=tokenizer)
    assert found.total.cosine == pytest.approx(1)
    halves = [Alignment.total(part.values()) for part in (found.first_halves, found.second_halves)]
    assert halves[0].cosine == halves[1].cosine < 1
    # By hand: the same completions, the reward less the mean of the others'.
    prompts = rf.domains.prompt_batches(Letters(), tokenizer, count=20)
    model.eval()
    (batch,) = completed(model, list(prompts), seed=0, tokenizer=tokenizer)
    kept = [ids[labels != -100] for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    texts = [tokenizer.decode([t for t in ids.tolist() if t != tokenizer.eos_token_id]) for ids in kept]
    rewards = torch.tensor([Letters().reward(Example("", ""), text) for text in texts])
    advantages = torch.stack([r - (rewards.sum() - r) / 19 for r in rewards])
    loss = -(advantages * completion_log_probs(model, batch)).mean()
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients(model, loss).values()))
    assert math.sqrt(found.total.first) == pytest.approx(norm, rel=1e-4)


def test_what_has_no_gradient_is_refused(completions: Completions) -> None:
    model, tokenizer = speaking_model(), build_tokenizer()
    whole = completions(6)
    with pytest.raises(ConfigError, match=r"reward 0\.5 for all 8"):
        rf.gradient_alignment(model, Constant(), Letters(), samples=8, tokenizer=tokenizer)
    prompts = [{name: value for name, value in batch.items() if name != "labels"} for batch in whole]
    with pytest.raises(ConfigError, match="without labels"):
        rf.gradient_alignment(model, prompts, whole)
    with pytest.raises(ConfigError, match="at least 4 completions"):
        rf.gradient_alignment(model, whole, whole, samples=3)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="gradient of"):
        rf.gradient_alignment(model, whole, whole)
