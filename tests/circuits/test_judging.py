"""Faithfulness and its curve: against a forward a mask and against MIB's own loop."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.circuits.circuit import Circuit
from rlforget.circuits.forward import answer_logits
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.judging import MIB_SIZES, curve, evaluate_circuit
from rlforget.circuits.masked_runs import MaskedRuns, gated
from rlforget.circuits.metrics import get
from rlforget.circuits.task import Task
from rlforget.errors import ConfigError, NonFiniteError, UndefinedCircuitError
from tests.circuits.tiny_models import task_of_ids, tiny

SHAPE = (2, 4)


def some_mask(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.5


@torch.no_grad()
def naive(model: nn.Module, task: Task, mask: Tensor, ablation: str, metric: str = "log_prob_difference") -> Tensor:
    """The metric of each prompt, one unpadded prompt and one head at a time."""
    sites, values = HeadSites(model), []
    batches = list(task.encode(None, batch_size=1))
    outputs = []
    for batch in batches:
        with sites.capture() as found:
            answer_logits(model, batch, "counterfactual")
        outputs.append([z.clone() for z in found])
    mean = [torch.cat([z[layer][0] for z in outputs]).mean(0) for layer in range(sites.layers)]
    for batch, source in zip(batches, outputs, strict=True):

        def edit(layer: int, z: Tensor, source: list[Tensor] = source) -> Tensor:
            z = z.clone()
            for head in range(z.shape[2]):
                if not mask[layer, head]:
                    new = {"zero": torch.zeros(()), "mean": mean[layer][head], "resample": source[layer][0, :, head]}
                    z[0, :, head] = new[ablation]
            return z

        with sites.edited(edit):
            values.append(get(metric)(answer_logits(model, batch), batch))
    return torch.cat(values).double()


def mib_areas(percentages: tuple[float, ...], faithfulnesses: tuple[float, ...]) -> tuple[float, float]:
    """MIB's loop over a curve: the area under it, and the area from 1."""
    under = from_one = 0.0
    for i in range(len(faithfulnesses) - 1):
        width, first, second = percentages[i + 1] - percentages[i], faithfulnesses[i], faithfulnesses[i + 1]
        from_one += width * (abs(1.0 - first) + abs(1.0 - second)) / 2
        under += width * (first + second) / 2
    return under, from_one


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "wide"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_heads_outside_the_mask_get_the_replacement(name: str, ablation: str) -> None:
    model, task = tiny(name), task_of_ids()
    found = evaluate_circuit(model, task, some_mask(), ablation=ablation, metric="log_prob")
    masks = (torch.ones(SHAPE, dtype=torch.bool), some_mask(), torch.zeros(SHAPE, dtype=torch.bool))
    expected = torch.stack([naive(model, task, mask, ablation, "log_prob") for mask in masks])
    torch.testing.assert_close(found.prompts, expected, rtol=1e-4, atol=1e-5)
    full, circuit, empty = expected.mean(1).tolist()
    assert found.ratio == pytest.approx(circuit / full, rel=1e-4)
    assert found.normalised == pytest.approx((circuit - empty) / (full - empty), rel=1e-3)
    assert (found.size, found.heads) == (int(some_mask().sum()), 8)
    json.dumps(found.to_dict())


@pytest.mark.parametrize("metric", ["log_prob", "probability", "log_prob_difference"])
def test_all_heads_are_the_model_and_none_explain_nothing(metric: str) -> None:
    model, task = tiny("qwen2"), task_of_ids()
    whole = evaluate_circuit(model, task, torch.ones(SHAPE, dtype=torch.bool), metric=metric)
    assert (whole.ratio, whole.normalised) == (1.0, 1.0)
    assert evaluate_circuit(model, task, torch.zeros(SHAPE, dtype=torch.bool), metric=metric).normalised == 0.0


def test_a_kept_head_is_kept_to_the_bit_and_a_replaced_one_replaced_to_the_bit() -> None:
    model, batch = tiny("qwen2"), next(iter(task_of_ids().encode(None)))
    sites = HeadSites(model)
    new = [torch.randn(len(batch), batch.clean_ids.shape[1], 4, width) for width in sites.head_dim]
    everywhere = torch.ones_like(batch.clean_ids, dtype=torch.bool)
    for dtype in (torch.bool, torch.float32):
        gates = torch.ones(len(batch), *SHAPE).to(dtype)
        with torch.no_grad():
            plain = answer_logits(model, batch)
            with gated(sites, gates, new, everywhere):
                assert torch.equal(answer_logits(model, batch), plain)
            gates[:, 1, 2] = 0
            with gated(sites, gates, new, everywhere), sites.capture() as found:
                answer_logits(model, batch)
            assert torch.equal(found[1][:, :, 2], new[1][:, :, 2])
            with gated(sites, gates, new, ~everywhere):  # at no position
                assert torch.equal(answer_logits(model, batch), plain)


def test_masks_batched_in_one_forward_are_masks_run_one_by_one() -> None:
    model, task = tiny("qwen2"), task_of_ids(5)
    masks = torch.stack([some_mask(seed) for seed in (1, 2, 3, 1)])
    found = [MaskedRuns(model, task, batch_size=size).values(masks) for size in (1, 2, 20)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(values[0], values[3]) for values in found)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("gpt2").train()
    model.get_parameter("transformer.wte.weight").requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_circuit(model, task_of_ids(), some_mask())
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["transformer.wte.weight"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_positions_limit_where_heads_are_replaced() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    above = torch.tensor([[False], [True]]).expand(SHAPE)  # were the last layer replaced too, it alone would count
    values = [
        evaluate_circuit(model, task, above, positions=positions).circuit for positions in ("all", "last", [(0, 2)])
    ]
    assert len(set(values)) == 3


def test_the_curve_is_mibs() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    scores = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    found = curve(model, task, scores)
    assert found.sizes == MIB_SIZES
    assert found.counts == (0, 0, 0, 0, 0, 0, 0, 1, 4, 8)
    order = scores.flatten().argsort(descending=True)
    by_size = scores.abs().flatten().argsort(descending=True)
    for ranking, faithfulness in ((order, found.faithfulness), (by_size, found.faithfulness_absolute)):
        for count, value in zip(found.counts, faithfulness, strict=True):
            mask = torch.zeros(8, dtype=torch.bool)
            mask[ranking[:count]] = True
            assert value == pytest.approx(evaluate_circuit(model, task, mask.view(SHAPE)).normalised, abs=1e-4)
    assert found.cpr == pytest.approx(mib_areas(MIB_SIZES, found.faithfulness)[0])
    assert found.cmd == pytest.approx(mib_areas(MIB_SIZES, found.faithfulness_absolute)[1])
    json.dumps(found.to_dict())


def test_a_circuit_ranks_by_its_scores_and_not_by_its_mask() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    scores = torch.arange(8.0).view(SHAPE)
    circuit = Circuit(scores, some_mask(), "patching")
    assert curve(model, task, circuit).to_dict() == curve(model, task, scores).to_dict()


@given(st.lists(st.floats(-2, 3), min_size=10, max_size=10))
def test_areas_of_any_curve(faithfulness: list[float]) -> None:
    from rlforget.circuits.judging import _area_from_one, _area_under

    column = torch.tensor(faithfulness, dtype=torch.float64)[:, None]
    under, from_one = mib_areas(MIB_SIZES, tuple(faithfulness))
    assert float(_area_under(MIB_SIZES, column)) == pytest.approx(under, abs=1e-12)
    assert float(_area_from_one(MIB_SIZES, column)) == pytest.approx(from_one, abs=1e-12)


def test_intervals_hold_their_estimate_and_are_the_same_again() -> None:
    model, task = tiny("qwen2"), task_of_ids(8)
    found, area = evaluate_circuit(model, task, some_mask()), curve(model, task, torch.randn(SHAPE))
    for one, again, value in (
        (found.interval(seed=3), found.interval(seed=3), found.normalised),
        (found.interval("ratio"), found.interval("ratio"), found.ratio),
        (area.interval(), area.interval(), area.cpr),
        (area.interval("cmd"), area.interval("cmd"), area.cmd),
    ):
        assert one == again
        assert one.estimate == pytest.approx(value)
        assert one.low <= value <= one.high


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda m, t: evaluate_circuit(m, t, torch.ones(2, 3, dtype=torch.bool)), ConfigError),
        (lambda m, t: evaluate_circuit(m, t, torch.ones(SHAPE)), ConfigError),
        (lambda m, t: curve(m, t, torch.ones(2, 3)), ConfigError),
        (lambda m, t: curve(m, t, torch.ones(SHAPE), sizes=(0.5, 0.2)), ConfigError),
        (lambda m, t: curve(m, t, torch.ones(SHAPE), sizes=(0.5, 1.5)), ConfigError),
        (lambda m, t: evaluate_circuit(m, t, some_mask()).interval("area"), ConfigError),
        (lambda m, t: curve(m, t, torch.ones(SHAPE)).interval("ratio"), ConfigError),
    ],
)
def test_bad_input_is_named(call: Any, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        call(tiny("qwen2"), task_of_ids())


def test_a_metric_that_no_head_changes_has_no_faithfulness() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    same = Task("same", [type(p)(p.clean, p.clean, p.target, p.distractor) for p in task.pairs])
    with pytest.raises(UndefinedCircuitError, match="with none"):
        evaluate_circuit(model, same, some_mask())
    with pytest.raises(UndefinedCircuitError):
        curve(model, same, torch.ones(SHAPE))


def test_nan_is_named() -> None:
    model = tiny("qwen2")
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        evaluate_circuit(model, task_of_ids(), some_mask())
