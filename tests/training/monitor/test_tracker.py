"""What a tracker measures in a plain loop is what the library measures afterwards."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rlforget as rf
from rlforget.errors import ConfigError, ForgettingWarning, LayoutError, OutputError, ParameterError, UnknownNameError
from rlforget.interference.divergence import kl_divergence
from rlforget.training.monitor import earlier, trained
from tests.training.monitor.loops import adam, completions, train
from tests.training.toy import Sevens, bits, same_bits


@pytest.fixture(params=[1 << 22, 1 << 12], ids=["one stretch", "many stretches"])
def stretch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pass over the parameters as one piece, and in pieces that end inside of tensors."""
    for module in (trained, earlier):
        monkeypatch.setattr(module, "STRETCH", request.param)


@pytest.mark.usefixtures("stretch")
@pytest.mark.parametrize("keep", ["device", "memory", "disk"])
@pytest.mark.parametrize(("own", "kept"), [("float32", None), ("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_change_is_that_of_a_diff(model: Any, keep: str, own: str, kept: str | None) -> None:
    model.to(getattr(torch, own))
    dtype = None if kept is None else getattr(torch, kept)
    start = copy.deepcopy(model)
    optimizer = adam(model, 1e-5)
    tracker = rf.Tracker(model, optimizer, every=2, keep=keep, dtype=dtype)
    train(model, optimizer, 4)
    assert [figures.step for figures in tracker.measured] == [0, 2, 4]
    if dtype is not None:
        start, model = start.to(dtype), model.to(dtype)
    expected = rf.diff(start, model).stats().total
    found = tracker.finish().change
    assert (found.dtypes, found.numel, found.changed) == (expected.dtypes, expected.numel, expected.changed)
    assert found.changed_absolute == expected.changed_absolute
    assert found.changed_relative == expected.changed_relative
    assert found.steps == expected.steps
    assert found.l2 == pytest.approx(expected.l2, rel=1e-12)
    assert found.changed > 0


def test_one_step_is_the_last_one(model: Any) -> None:
    model.bfloat16()
    optimizer = adam(model, 1e-5)
    tracker = rf.Tracker(model, optimizer, every=3)
    train(model, optimizer, 2)
    before = copy.deepcopy(model)
    train(model, optimizer, 1)
    expected = rf.diff(before, model).stats().total
    found = tracker.measured[-1].one_step
    assert found is not None
    assert (found.changed, found.numel) == (expected.changed, expected.numel)
    assert found.changed < tracker.measured[-1].change.changed


def test_one_step_of_a_large_model_is_known_from_a_sample(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlforget.training.monitor import one_step

    monkeypatch.setattr(one_step, "COORDINATES", 1 << 15)
    monkeypatch.setattr(one_step, "_BLOCK", 1 << 6)
    model.bfloat16()
    optimizer = adam(model, 1e-5)
    before = copy.deepcopy(model)
    tracker = rf.Tracker(model, optimizer, every=1)
    train(model, optimizer, 1)
    found, whole = tracker.measured[-1].one_step, rf.diff(before, model).stats().total
    assert found is not None
    assert 1 << 14 < found.numel < 1 << 15
    assert found.sparsity == pytest.approx(whole.sparsity, abs=0.05)


@pytest.mark.usefixtures("stretch")
def test_overlap_is_that_of_the_deltas(model: Any, tmp_path: Path) -> None:
    model.bfloat16()
    start = copy.deepcopy(model)
    first = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(torch.where(torch.rand_like(parameter) < 0.3, 1.1, 1.0))
    delta = rf.diff(start, first)
    delta.save(tmp_path / "first.delta.safetensors")
    optimizer = adam(model, 1e-6)
    given = {"first": delta, "from a file": tmp_path / "first.delta.safetensors"}
    tracker = rf.Tracker(model, optimizer, every=1, earlier=given)
    train(model, optimizer, 1)
    expected = rf.overlap(delta, rf.diff(start, model)).coordinates
    assert 0 < expected.common < expected.first
    assert tracker.measured[-1].overlaps == {"first": expected, "from a file": expected}


@pytest.mark.usefixtures("stretch")
def test_damage_is_half_the_fisher_weighted_square(model: Any) -> None:
    start = copy.deepcopy(model)
    optimizer = adam(model)
    tracker = rf.Tracker(model, optimizer, every=2, protect={"given": completions()}, dtype=None, tokenizer=object())
    train(model, optimizer, 2)
    delta = rf.diff(start, model)
    fisher = rf.fisher(start, completions(), at=delta)
    change = {name: t.after.double() - t.before.double() for name, t in delta.items()}
    energy = sum(float((fisher.values[name].double() * change[name] ** 2).sum()) for name in change)
    figures = tracker.measured[-1]
    assert figures.damage["given"] == pytest.approx(energy / 2, rel=1e-4)
    square = sum(float((value**2).sum()) for value in change.values())
    total = sum(float(value.double().sum()) for value in fisher.values.values())
    mean = total / sum(p.numel() for p in model.parameters())
    assert figures.conflict["given"] == pytest.approx(energy / square / mean, rel=1e-4)
    assert tracker.measured[0].damage == {"given": 0.0}
    assert tracker.measured[0].conflict == {}


def test_damage_has_the_same_bits_on_any_number_of_threads(model: Any) -> None:
    tracker = rf.Tracker(model, every=1, protect={"given": completions()}, held_samples=0, tokenizer=object())
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    found, threads = set[float](), torch.get_num_threads()
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            found.add(tracker.measure().damage["given"])
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_kl_is_that_of_the_two_models(model: Any) -> None:
    start = copy.deepcopy(model)
    optimizer = adam(model)
    tracker = rf.Tracker(model, optimizer, every=2, protect={"given": completions()}, fisher_samples=0, tokenizer=1)
    train(model, optimizer, 2)
    expected = kl_divergence(start, model, completions(), samples=4)
    found = tracker.measured[-1].divergence["given"]
    assert found.count == 4
    assert found.mean == pytest.approx(expected.mean, rel=1e-5)
    assert found.mean > 0
    assert tracker.measured[0].divergence["given"].mean == pytest.approx(0.0, abs=1e-6)
    assert tracker.measured[-1].damage == {}


def test_another_reference(model: Any, tmp_path: Path) -> None:
    start = copy.deepcopy(model)
    train(model, adam(model), 1)
    model.save_pretrained(tmp_path / "later")
    for reference in (start, tmp_path / "later"):
        tracker = rf.Tracker(model, reference=reference, dtype=None)
        assert tracker.measured[0].change.changed == rf.diff(reference, model).changed
    assert tracker.measured[0].change.changed == 0


def test_frozen_parameters_count_as_unchanged(model: Any) -> None:
    total = sum(p.numel() for p in model.parameters())
    model.model.embed_tokens.weight.requires_grad_(False)
    frozen = model.model.embed_tokens.weight.numel()
    optimizer = adam(model)
    tracker = rf.Tracker(model, optimizer, every=1, dtype=None)
    train(model, optimizer, 1)
    figures = tracker.measured[-1]
    assert (figures.frozen, figures.change.numel) == (frozen, total - frozen)
    assert figures.sparsity() == 1 - figures.change.changed / total
    model.requires_grad_(False)
    with pytest.raises(ParameterError, match="requires_grad on none"):
        rf.Tracker(model)


def test_views_that_are_not_contiguous() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3))
    model[0].weight = nn.Parameter(torch.randn(6, 4).t())
    tracker = rf.Tracker(model, dtype=None)
    with torch.no_grad():
        model[0].weight[2, 3] += 1
        model[1].bias[1] = -0.0 if model[1].bias[1] != 0 else 1.0
    assert tracker.measure().change.changed == 2


def test_nan_payloads_and_signed_zeros_count_by_their_bits() -> None:
    model = nn.Linear(4, 1, bias=False).bfloat16()
    kept = torch.tensor([0x7FC1, 0x0000, 0x3F80, 0x7F81], dtype=torch.int16)
    with torch.no_grad():
        model.weight.view(torch.int16).copy_(kept.view(1, 4))
    tracker = rf.Tracker(model)
    assert tracker.measure().change.changed == 0
    with torch.no_grad():
        model.weight.view(torch.int16)[0, 0] = 0x7FC2
        model.weight.view(torch.int16)[0, 1] = -0x8000
    assert tracker.measure().change.changed == 2


def test_the_run_is_left_as_it_is(model: Any, tokenizer: Any) -> None:
    alone, random = copy.deepcopy(model), torch.get_rng_state()
    train(alone, adam(alone), 4)
    optimizer = adam(model)
    with rf.Tracker(
        model, optimizer, every=2, protect=["math"], evaluate=[Sevens()], evaluate_every=2, tokenizer=tokenizer
    ) as tracker:
        train(model, optimizer, 4)
    assert same_bits(bits(alone), bits(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.grad is None for p in model.parameters())
    assert all(figures.rewards["sevens"].count == 64 for figures in tracker.measured)
    seen = len(tracker.measured)
    train(model, optimizer, 2)  # the tracker let go of the optimizer
    assert len(tracker.measured) == seen


def test_warnings_come_once_and_can_end_a_run(model: Any, tmp_path: Path) -> None:
    optimizer = adam(model, 1e-2)
    protect = {"given": completions()}
    options: dict[str, Any] = {"protect": protect, "tokenizer": 1, "every": 1, "log": tmp_path / "log.jsonl"}
    with rf.Tracker(model, optimizer, warn_at=1e-2, stop=True, **options) as tracker:
        assert not tracker.should_stop
        with pytest.warns(ForgettingWarning, match=r"'given': predicted damage .* nats a completion, of at most 0\.01"):
            train(model, optimizer, 1)
        assert tracker.should_stop
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, optimizer, 2)
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["forgetting", "forgetting", "warning", "forgetting", "forgetting"]


def test_stages_are_committed(model: Any, tmp_path: Path) -> None:
    history = rf.History.init(tmp_path / "history", copy.deepcopy(model), copy=True)
    optimizer = adam(model)
    with rf.Tracker(model, optimizer, history=tmp_path / "history", domain="writing", commit_every=3) as tracker:
        train(model, optimizer, 3)
        middle = bits(model)
        train(model, optimizer, 2)
    assert [(stage.domain, stage.config["step"]) for stage in tracker.stages] == [("writing", 3), ("writing", 5)]
    assert [stage.name for stage in history.log()] == [stage.name for stage in reversed(tracker.stages)]
    for stage, expected in zip(tracker.stages, (middle, bits(model)), strict=True):
        weights = history.weights(stage)
        assert all(torch.equal(weights.tensor(n).view(torch.uint8), expected[n]) for n in weights.names())
    assert history.log()[0].metrics["update_sparsity"] < 1
    with rf.Tracker(model, history=history) as tracker:
        pass
    assert tracker.stages == []  # nothing changed


def test_a_history_that_does_not_fit_is_refused_before_the_run(model: Any, tmp_path: Path) -> None:
    history = rf.History.init(tmp_path / "history", {"weight": torch.zeros(3)}, copy=True)
    with pytest.raises(LayoutError):
        rf.Tracker(model, history=history)
    with pytest.raises(LayoutError, match="as in the model that is trained"):
        rf.Tracker(model, reference={"weight": torch.zeros(3)})
    with pytest.raises(LayoutError, match="delta of an earlier stage"):
        rf.Tracker(model, earlier={"x": rf.diff({"weight": torch.zeros(3)}, {"weight": torch.ones(3)})})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"every": 0}, "every"),
        ({"evaluate": ["math"], "evaluate_every": 15}, "a multiple of every=10"),
        ({"evaluate_every": 10}, "evaluate= beside it"),
        ({"commit_every": 5}, "history= beside it"),
        ({"guard": "project"}, "protect= beside it"),
        ({"warn_at": 0.1}, "protect= beside it"),
        ({"protect": ["math"], "stop": True}, "warn_at= beside it"),
        ({"protect": ["math"], "warn_at": -1.0}, "a positive number of nats"),
    ],
)
def test_options_that_cannot_be(model: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        rf.Tracker(model, **options)


def test_places_that_cannot_be(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="one of device, memory, disk"):
        rf.Tracker(model, keep="moon")
    with pytest.raises(OutputError, match="a folder with room for"):
        rf.Tracker(model, keep="disk", folder=tmp_path / "nowhere")
    rf.Tracker(model, keep="disk", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []  # the mapped file has no name any more


def test_what_is_not_a_number_is_warned_of(model: Any) -> None:
    options: dict[str, Any] = {"protect": {"given": completions()}, "tokenizer": 1, "fisher_samples": 0}
    tracker = rf.Tracker(model, warn_at=1.0, stop=True, **options)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.warns(ForgettingWarning, match="KL nan"):
        tracker.measure()
    assert tracker.should_stop


def test_a_commit_tells_of_the_weights_that_it_holds(model: Any, tmp_path: Path) -> None:
    history = rf.History.init(tmp_path / "history", copy.deepcopy(model), copy=True)
    optimizer = adam(model)
    rf.Tracker(model, optimizer, every=10, commit_every=2, history=history, dtype=None)
    train(model, optimizer, 2)
    assert history.log()[0].metrics["update_sparsity"] < 0.5


@pytest.mark.parametrize("guard", ["project", "fisher", "surgery"])
def test_a_guard_leaves_frozen_parameters_to_the_bit(model: Any, guard: Any) -> None:
    embedding = model.model.embed_tokens.weight.requires_grad_(False)
    held = embedding.detach().clone()
    optimizer = adam(model)
    with rf.Tracker(model, optimizer, protect={"given": completions()}, guard=guard, tokenizer=1, fisher_samples=0):
        train(model, optimizer, 2)
    assert torch.equal(embedding.view(torch.int32), held.view(torch.int32))


def test_modes_of_modules_are_left_as_they_are(model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    rf.Tracker(model, protect=["math"], evaluate=["qa"], tokenizer=tokenizer, fisher_samples=4, evaluate_count=4)
    assert [module.training for module in model.modules()] == modes


def test_batches_that_can_be_taken_but_once(model: Any) -> None:
    tracker = rf.Tracker(model, protect={"given": iter(completions())}, tokenizer=1)
    assert tracker.measured[0].flat().keys() >= {"kl/given", "damage/given"}


def test_a_part_that_does_not_say_which_is_refused(model: Any) -> None:
    model.model.norm.weight._is_flat_param = True
    with pytest.raises(ParameterError, match="flattened by FSDP1"):
        rf.Tracker(model)
