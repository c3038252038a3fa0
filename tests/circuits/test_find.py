"""Finding circuits: what comes back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rlforget as rf
from rlforget.circuits import METRICS, Circuit, HeadSites, Pair, Task, find
from rlforget.circuits.finding import task_batches
from rlforget.circuits.trial import Trial
from rlforget.domains import miniature
from rlforget.errors import (
    ConfigError,
    EmptyDomainError,
    LayoutError,
    NonFiniteError,
    NotACheckpointError,
    OutputError,
    TaskError,
    UndefinedCircuitError,
    UnknownNameError,
)
from tests.circuits.tiny_models import task_of_ids, tiny, zero_head
from tests.interference.conftest import untouched

__all__ = ["untouched"]


def circuit(**changes: Any) -> Circuit:
    scores = torch.tensor([[0.5, -0.25], [0.125, 0.5]])
    return Circuit(**{"scores": scores, "mask": scores > 0, "method": "patching", **changes})


def test_a_circuit_tells_what_was_asked_and_measured() -> None:
    model, task = tiny("qwen2"), task_of_ids(5)
    found = find(model, task, "eap-ig", metric="log_prob", ablation="mean", positions=[(0, 2)], steps=3, seed=4)
    assert found.scores.shape == (2, 4)
    assert found.scores.dtype == torch.float32
    expected = {
        "ablation": "mean",
        "positions": [[0, 2]],
        "samples": 5,
        "steps": 3,
        "rule": "right",
        "dtype": "float32",
    }
    assert expected.items() <= found.settings.items()
    assert (found.method, found.seed, found.metric["name"]) == ("eap-ig", 4, "log_prob")
    for name in ("clean", "corrupt", "ablated"):
        values = found.metric["per_prompt"][name]
        assert found.metric[name] == pytest.approx(sum(values) / 5)
        assert all(value < 0 for value in values)
    assert 0 < found.seconds < 60


def test_reference_values_are_the_metric_of_plain_forwards() -> None:
    model, task = tiny("gpt2"), task_of_ids(4, lengths=(5,))
    batches = task_batches(model, task, batch_size=1)
    found = Trial(model, HeadSites(model), batches, METRICS["probability"], "zero").values()
    silent = tiny("gpt2")
    for layer in range(2):
        for head in range(4):
            zero_head(HeadSites(silent), layer, head)
    runs = {"clean": (model, "clean_ids"), "corrupt": (model, "counterfactual_ids"), "ablated": (silent, "clean_ids")}
    for name, (run, ids) in runs.items():
        with torch.no_grad():
            plain = [METRICS["probability"](run(input_ids=getattr(b, ids)).logits, b) for b in batches]
        torch.testing.assert_close(found[name], torch.cat(plain))


@pytest.mark.parametrize("method", ["patching", "attribution", "eap-ig", "random"])
def test_the_model_and_the_random_state_are_left_as_found(
    method: str, untouched: Callable[[nn.Module], Callable[[], None]]
) -> None:
    model = tiny("qwen2").train()
    model.model.layers[0].mlp.eval().requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    check, state = untouched(model), torch.get_rng_state()
    find(model, task_of_ids(3), method)
    check()
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_the_vocabulary_is_read_once_a_forward() -> None:
    """Of a strided view torch multiplies row by row, see `forward.measuring`."""
    model, seen = tiny("qwen2"), []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(args[0].is_contiguous()))
    find(model, task_of_ids(6), "eap-ig")
    lengths, contiguous = seen[::2], seen[1::2]
    assert max(lengths) < max(len(pair.clean) for pair in task_of_ids(6).pairs)
    assert all(contiguous)


def test_dropout_is_off() -> None:
    model = tiny("gpt2").train()
    assert model.config.attn_pdrop > 0
    task = task_of_ids(3)
    assert torch.equal(find(model, task, "patching").scores, find(model, task, "patching").scores)


def test_the_model_is_left_as_found_after_an_error() -> None:
    model = tiny("qwen2").train()

    def broken(logits: Tensor, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("broken")
        return METRICS["log_prob"](logits, batch)

    with pytest.raises(RuntimeError, match="broken"):
        find(model, task_of_ids(3), "attribution", metric=broken)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_metric_of_one_s_own_is_taken_by_its_name() -> None:
    def margin(logits: Tensor, batch: Any) -> Tensor:
        return 2 * METRICS["log_prob"](logits, batch)

    model, task = tiny("qwen2"), task_of_ids(3)
    own, known = find(model, task, "patching", metric=margin), find(model, task, "patching", metric="log_prob")
    assert own.metric["name"] == "margin"
    torch.testing.assert_close(own.scores, 2 * known.scores)


@pytest.mark.parametrize(("size", "heads"), [(3, 3), (0, 0), (8, 8), (0.5, 4), (1.0, 8), (0.0, 0)])
def test_a_size_picks_the_highest_scores(size: float, heads: int) -> None:
    found = find(tiny("qwen2"), task_of_ids(3), "patching", size=size)
    assert found.size == heads
    if 0 < heads < 8:
        assert float(found.scores[found.mask].min()) >= float(found.scores[~found.mask].max())


def test_without_a_size_heads_must_stand_out_of_the_noise_and_matter() -> None:
    model, task = tiny("qwen2", layers=4), task_of_ids(60)

    def less_is_better(logits: Tensor, batch: Any) -> Tensor:  # most heads of this model do harm
        return -METRICS["log_prob_difference"](logits, batch)

    free = find(model, task, "patching", metric=less_is_better, floor=0.0)
    assert free.per_prompt is not None
    clear = free.scores > 2 * free.per_prompt.std(0) / 60**0.5
    assert torch.equal(free.mask, clear)
    assert 1 < free.size < int((free.scores > 0).sum())
    middle, gap = float(free.scores[clear].mean()), abs(free.metric["clean"] - free.metric["ablated"])
    found = find(model, task, "patching", metric=less_is_better, floor=middle / gap)
    assert torch.equal(found.mask, clear & (free.scores >= middle))
    with pytest.raises(ConfigError, match="floor"):
        find(model, task, "patching", floor=-0.5)


def test_heads_that_only_chance_puts_above_0_are_not_in_the_circuit() -> None:
    model, task = tiny("qwen2", layers=4), task_of_ids(12)
    sites = HeadSites(model)
    with torch.no_grad():  # heads that hardly write anything, but for one
        for layer, head in ((i, j) for i in range(4) for j in range(4) if (i, j) != (2, 1)):
            width = sites.head_dim[layer]
            sites.modules[layer].weight[:, head * width : (head + 1) * width] *= 1e-3
    found = find(model, task, "patching", metric="log_prob", ablation="zero")
    assert int((found.scores > 0).sum()) > 3
    assert found.size <= 1


@pytest.mark.parametrize("size", [-1, 9, 1.5, -0.1, True])
def test_sizes_out_of_range_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="size"):
        find(tiny("qwen2"), task_of_ids(3), "random", size=size)


def test_the_first_samples_are_used_and_a_domain_s_name_will_do() -> None:
    model, _ = miniature.load()  # finds its tokenizer in its folder
    whole = Task.from_domain("qa", count=64)
    named = find(model, "qa", "attribution", samples=5, batch_size=2)
    assert named.settings["samples"] == 5
    assert torch.equal(named.scores, find(model, Task("five", whole.pairs[:5]), "attribution", batch_size=2).scores)


def test_a_head_that_does_all_the_work_is_found_first() -> None:
    model, task = tiny("qwen2"), task_of_ids(6)
    sites = HeadSites(model)
    for layer in range(2):
        for head in range(4):
            if (layer, head) != (1, 2):
                zero_head(sites, layer, head)
    for method in ("patching", "attribution", "eap-ig"):
        assert find(model, task, method).scores.abs().flatten().argmax() == 6


def test_a_metric_that_no_head_changes_defines_no_circuit() -> None:
    model, task = tiny("qwen2"), task_of_ids(3)
    with pytest.raises(UndefinedCircuitError, match="same value on every prompt"):
        find(model, task, metric=lambda logits, batch: 0 * logits.sum((1, 2)) + 1.0)
    same = Task("same", [Pair(p.clean, p.clean, p.target, p.distractor) for p in task.pairs])
    with pytest.raises(UndefinedCircuitError, match="resample"):
        find(model, same, "random")
    assert bool(find(model, same, "patching", ablation="zero").scores.any())  # zeros do change it


def test_numbers_that_are_none_are_refused() -> None:
    model = tiny("qwen2")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the metric on corrupt prompts"):
        find(model, task_of_ids(3), "random", metric="log_prob")


def test_bad_tasks_and_names_are_refused_before_any_forward() -> None:
    model = tiny("qwen2")
    model.forward = None
    with pytest.raises(EmptyDomainError):
        find(model, Task("none", []))
    with pytest.raises(TaskError, match="pair 0"):
        find(model, Task("t", [Pair((1,), (1, 2), (3,), (4,))]))
    with pytest.raises(ConfigError, match="samples"):
        find(model, task_of_ids(), samples=0)
    with pytest.raises(ConfigError, match="tokenizer"):
        find(model, Task("t", [Pair("a", "b", "c", "d")]))
    with pytest.raises(UnknownNameError, match="metric 'accuracy'"):
        find(model, task_of_ids(), metric="accuracy")


def test_unknown_ablations_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="resample, mean, zero"):
        find(tiny("qwen2"), task_of_ids(), ablation="noise")


def test_quantised_models_are_refused() -> None:
    model = tiny("qwen2")
    model.is_quantized = True
    with pytest.raises(LayoutError, match="quantised"):
        find(model, task_of_ids())


def test_circuits_survive_a_file_to_the_bit(tmp_path: Path) -> None:
    found = find(tiny("wide"), task_of_ids(3), "eap-ig", size=0.25, positions="last")
    found.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    assert torch.equal(again.scores, found.scores)
    assert torch.equal(again.mask, found.mask)
    assert again.to_dict() == found.to_dict()
    assert again.heads() == [tuple(place) for place in found.mask.nonzero().tolist()]


def test_a_save_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "circuit.json"
    circuit().save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="no space"):
        circuit(seed=7).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["circuit.json"]


def test_files_that_are_no_circuits_are_refused(tmp_path: Path) -> None:
    good = circuit().to_dict()
    bad: list[Any] = [[], {}, {**good, "version": 9}, {**good, "mask": [[True]]}, {**good, "scores": "x"}]
    bad.append({name: value for name, value in good.items() if name != "seed"})
    for number, value in enumerate(bad):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(value))
        with pytest.raises(NotACheckpointError, match="a circuit file"):
            Circuit.load(path)
    with pytest.raises(NotACheckpointError):
        Circuit.load(tmp_path / "none.json")
    with pytest.raises(OutputError):
        circuit().save(tmp_path / "no" / "folder.json")


def test_circuits_hold_finite_scores_and_flags_of_their_shape() -> None:
    with pytest.raises(ConfigError, match="same shape"):
        circuit(mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(NonFiniteError):
        circuit(scores=torch.tensor([[0.0, float("nan")], [0.0, 0.0]]))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_top_takes_the_highest_and_ties_in_order(values: list[int], data: st.DataObject) -> None:
    scores = torch.tensor([values], dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    top = circuit(scores=scores, mask=scores > 0).top(count)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert top[0].nonzero().flatten().tolist() == sorted(order[:count])


def test_public_names_are_at_hand() -> None:
    assert rf.circuits.find is find
    assert {"find", "Circuit", "Task", "Pair", "HeadSites", "METHODS"} <= set(rf.circuits.__all__)
    assert set(rf.circuits.__all__) <= set(dir(rf.circuits))
    with pytest.raises(AttributeError, match="no_such_name"):
        rf.circuits.no_such_name  # noqa: B018
