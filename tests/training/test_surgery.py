"""Per-tensor gradient surgery, in a plain loop and in a trainer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import rlforget as rf
from rlforget.domains.miniature.pretrain import build_model
from rlforget.interference.completions import completion_log_probs
from rlforget.interference.divergence import kl_divergence
from rlforget.training import refresh
from rlforget.training.surgery import Surgery, _bend
from tests.training.monitor.loops import TOKENS, adam, completions, train
from tests.training.toy import Sevens, bits, same_bits


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def test_no_tensor_points_against_the_protected_domain_any_more(model: Any) -> None:
    guard = Surgery(model, [completions()], samples=4, seed=0, tokenizer=None)
    theirs = gradients(model, -completion_log_probs(model, completions()[0]).mean())
    (-model(input_ids=TOKENS, labels=TOKENS).loss).backward()  # ascent on what they say: against them
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    guard.before_step()
    bent = 0
    for name, p in model.named_parameters():
        inner = float((ours[name] * theirs[name]).sum())
        left = float((p.grad * theirs[name]).sum())
        size = float(p.grad.norm() * theirs[name].norm())
        if inner < 0:
            bent += 1
            assert abs(left) < 1e-4 * max(size, float(ours[name].norm() * theirs[name].norm()))
        else:
            assert torch.equal(p.grad, ours[name])
    figures = guard.figures()
    assert bent > 0
    assert figures["tensors_bent"] == pytest.approx(bent / len(ours))
    assert -1 <= figures["cosine_least"] < 0


def test_a_gradient_without_a_direction_bends_nothing() -> None:
    for theirs in (torch.zeros(3), torch.tensor([1.0, float("inf"), 0.0]), torch.tensor([float("nan")] * 3)):
        parameter = torch.nn.Parameter(torch.zeros(3))
        parameter.grad = torch.tensor([1.0, -2.0, 3.0])
        assert float(_bend(parameter, theirs)) == 0
        assert parameter.grad.tolist() == [1.0, -2.0, 3.0]
    parameter.grad = torch.tensor([-1e-2, 0.0, 1.0])
    _bend(parameter, torch.tensor([1e-23, 0.0, 0.0]))  # its square is no float32
    assert parameter.grad.abs().max() == 1
    assert float(_bend(parameter, torch.tensor([1e-15, 0.0, 0.0]))) == pytest.approx(-1e-2, rel=1e-3)
    assert parameter.grad.tolist() == [0.0, 0.0, 1.0]


def test_agreement_is_left_alone_to_the_bit(model: Any) -> None:
    guard = Surgery(model, [completions()], samples=4, seed=0, tokenizer=None)
    (-completion_log_probs(model, completions()[0]).mean()).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    guard.before_step()
    assert all(torch.equal(p.grad, ours[name]) for name, p in model.named_parameters())
    assert guard.figures()["cosine_mean"] == pytest.approx(1.0, abs=1e-3)


def test_a_guarded_loop_keeps_the_protected_domain_nearer(model: Any) -> None:
    drifts = {}
    for guard in (None, "surgery", "project", "fisher"):
        trained = copy.deepcopy(model)
        optimizer = adam(trained, 3e-4)
        shifted = [{"input_ids": TOKENS.flip(1), "attention_mask": torch.ones_like(TOKENS)}]
        shifted[0]["labels"] = shifted[0]["input_ids"]
        with rf.Tracker(
            trained, optimizer, every=4, protect={"given": shifted}, guard=guard, fisher_samples=0, tokenizer=1
        ) as tracker:
            train(trained, optimizer, 8)
        drifts[guard] = kl_divergence(model, trained, shifted, samples=4).mean
        names = {name.partition("/")[2] for name in tracker.measured[-1].flat() if name.startswith("guard/")}
        expected = {None: set(), "surgery": {"cosine_mean", "cosine_least", "tensors_bent"}}
        assert names == expected.get(guard, {"taken_off"})
    assert all(drifts[guard] < 0.95 * drifts[None] for guard in ("project", "fisher"))
    assert drifts["surgery"] != drifts[None]


def test_a_refresh_by_surgery_repeats_to_the_bit(tokenizer: Any) -> None:
    models = [build_model(0), build_model(0), build_model(0)]
    few = {"steps": 3, "method": "sft", "prompts": 4, "seed": 5, "progress": False}
    for model, protect in zip(models, ([Sevens()], [Sevens()], []), strict=True):
        refresh(model, tokenizer, "math", protect=protect, protection="surgery", protect_samples=32, **few)
    assert same_bits(bits(models[0]), bits(models[1]))
    assert not same_bits(bits(models[0]), bits(models[2]))
