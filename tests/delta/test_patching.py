from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from rlforget.delta import Delta, apply, diff, patching, revert
from rlforget.errors import CoordinateError, LayoutError, NotACheckpointError, OutputError, WrongBaseError
from tests.delta.random_weights import same_bits, write_checkpoint


class Model(nn.Module):
    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.block = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight if tied else nn.Parameter(self.embed.weight.detach().clone())


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def delta(model: Model) -> Delta:
    tuned = Model()
    tuned.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.rand_like(parameter))
    return diff(model, tuned)


def test_a_live_model_changes_in_place(model: Model, delta: Delta) -> None:
    weight, old = model.embed.weight, state(model)
    apply(model, delta)
    assert model.embed.weight is weight
    assert model.head.weight is weight
    assert weight.requires_grad
    assert not equal(state(model), old)
    revert(model, delta)
    assert equal(state(model), old)


def test_a_tied_tensor_is_one_tensor_under_all_its_names(model: Model, delta: Delta) -> None:
    assert list(delta) == ["embed.weight", "block.weight", "block.bias"]
    assert delta["head.weight"] is delta["embed.weight"]
    assert "head.weight" in delta
    assert "tail.weight" not in delta
    assert delta.get("tail.weight") is None


def test_copies_of_a_tied_tensor_are_all_changed(model: Model, delta: Delta) -> None:
    untied = Model(tied=False)
    untied.load_state_dict(model.state_dict())
    apply(untied, delta)
    assert torch.equal(untied.head.weight, untied.embed.weight)
    assert torch.equal(untied.head.weight[0], delta["embed.weight"].after[:4])


def test_a_tied_target_cannot_take_two_changes(model: Model) -> None:
    one, two = Model(tied=False), Model(tied=False)
    for untied in (one, two):
        untied.load_state_dict(model.state_dict())
    with torch.no_grad():
        two.head.weight[0, 0] += 1
    old = state(model)
    with pytest.raises(LayoutError, match="two different changes"):
        apply(model, diff(one, two))
    assert equal(state(model), old)


def test_a_checkpoint_without_the_tied_head_is_the_same_model(model: Model, delta: Delta, tmp_path: Path) -> None:
    tensors = state(model)
    del tensors["head.weight"]
    folder = write_checkpoint(tmp_path / "model", tensors, 2)
    assert diff(folder, model).changed == 0
    apply(folder, delta, out=tmp_path / "out")
    apply(model, delta)
    assert diff(tmp_path / "out", model).changed == 0


def test_one_file_to_another(model: Model, delta: Delta, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", state(model), 0)
    apply(folder / "model.safetensors", delta, out=tmp_path / "tuned.safetensors")
    apply(model, delta)
    assert diff(tmp_path / "tuned.safetensors", model).changed == 0


def test_other_bits_anywhere_leave_everything_as_it_was(model: Model, delta: Delta) -> None:
    with torch.no_grad():
        model.block.bias[2] = 9.0  # in the last tensor to be written
    old = state(model)
    with pytest.raises(WrongBaseError, match=r"'block.bias'.*1 of them, first at index 2: 0x41100000 in place of 0x"):
        apply(model, delta)
    assert equal(state(model), old)


def test_fit_is_checked_without_writing(model: Model, delta: Delta) -> None:
    old = state(model)
    patching.check_fits(model, delta)
    assert equal(state(model), old)
    apply(model, delta)
    with pytest.raises(WrongBaseError):
        patching.check_fits(model, delta)


def test_twice_applied_is_told_so(model: Model, delta: Delta) -> None:
    apply(model, delta)
    once = state(model)
    with pytest.raises(WrongBaseError, match="is there already"):
        apply(model, delta)
    assert equal(state(model), once)


def test_coordinates_outside_the_delta_may_differ(model: Model) -> None:
    tuned = Model()
    tuned.load_state_dict(model.state_dict())
    with torch.no_grad():
        tuned.block.bias[0] = 5.0
    delta = diff(model, tuned)
    with torch.no_grad():
        model.block.bias[1] = 7.0
    apply(model, delta)
    assert model.block.bias[:2].tolist() == [5.0, 7.0]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["before the write", "after the write"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_interrupt_puts_the_old_bits_back(
    model: Model,
    delta: Delta,
    fault: type[BaseException],
    moment: str,
    position: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, real, calls = state(model), patching.foreach_patch_, []

    def interrupted(*args: list[torch.Tensor]) -> torch.Tensor:
        calls.append(args)
        if len(calls) == position + 1:
            if moment == "after the write":
                real(*args)
            raise fault
        return real(*args)

    monkeypatch.setattr(patching, "foreach_patch_", interrupted)
    monkeypatch.setattr(patching, "_AT_ONCE", 1)  # a tensor after the other
    with pytest.raises(fault):
        apply(model, delta)
    assert len(calls) == position + 1
    assert equal(state(model), old)


@pytest.mark.parametrize("at_once", [1, patching._AT_ONCE])
def test_bits_that_change_under_our_hands_are_noticed(
    model: Model, delta: Delta, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = patching.foreach_patch_

    def meddled(*args: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            model.block.bias[0] = 3.0
        return real(*args)

    old = state(model)
    monkeypatch.setattr(patching, "foreach_patch_", meddled)
    monkeypatch.setattr(patching, "_AT_ONCE", at_once)
    with pytest.raises(WrongBaseError, match=r"block\.bias"):
        apply(model, delta)
    old["block.bias"][0] = 3.0
    assert equal(state(model), old)


def test_bits_that_change_and_change_back_are_noticed(
    model: Model, delta: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, held = patching.foreach_patch_, model.block.bias[0].item()

    def meddled(*args: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            model.block.bias[0] = 3.0
            found = real(*args)
            model.block.bias[0] = held
        return found

    old = state(model)
    monkeypatch.setattr(patching, "foreach_patch_", meddled)
    with pytest.raises(LayoutError, match="that nobody else writes"):
        apply(model, delta)
    assert equal(state(model), old)


def test_non_contiguous_weights_change_in_place() -> None:
    base = torch.arange(24.0).view(4, 6)
    live = {"turned": base[:, :3].t(), "rest": base[:, 3:]}
    new = {name: tensor.clone() for name, tensor in live.items()}
    new["turned"][1, 2] = -1.0
    new["rest"][3, 0] = -2.0
    delta = diff(live, new)
    assert delta["turned"].indices.tolist() == [1 * 4 + 2]
    apply(live, delta)
    assert base[2, 1] == -1.0
    assert base[3, 3] == -2.0
    assert delta.changed == (base != torch.arange(24.0).view(4, 6)).sum()


def test_expanded_weights_are_refused() -> None:
    live = {"x": torch.zeros(3).expand(2, 3)}
    delta = diff(live, {"x": torch.ones(2, 3)})
    with pytest.raises(LayoutError, match="Clone it first"):
        apply(live, delta)


def test_other_architectures_are_refused_before_anything_is_read(delta: Delta, tmp_path: Path) -> None:
    other = nn.Linear(4, 4)
    with pytest.raises(LayoutError, match=r"3 missing: embed\.weight"):
        apply(other, delta)
    with pytest.raises(NotACheckpointError):
        apply(tmp_path / "gone", delta, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_needs_an_output_and_a_live_model_takes_none(model: Model, delta: Delta, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", state(model), 0)
    with pytest.raises(OutputError, match="out="):
        apply(folder, delta)
    with pytest.raises(OutputError, match="Leave out= away"):
        apply(model, delta, out=tmp_path / "out")


def test_a_wrong_base_folder_writes_nothing(model: Model, delta: Delta, tmp_path: Path) -> None:
    tensors = state(model)
    tensors["block.bias"][0] += 1
    folder = write_checkpoint(tmp_path / "model", tensors, 0)
    with pytest.raises(WrongBaseError):
        apply(folder, delta, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_existing_output_is_kept_without_force(model: Model, delta: Delta, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", state(model), 0)
    out = write_checkpoint(tmp_path / "out", {"x": torch.zeros(1)}, 0)
    with pytest.raises(OutputError, match="force"):
        apply(folder, delta, out=out)
    apply(folder, delta, out=out, force=True)
    apply(model, delta)
    assert diff(out, model).changed == 0


@pytest.mark.parametrize("indices", [[-1, 2], [0, 16], [3, 99]])
def test_indices_outside_the_tensor_are_refused(delta: Delta, indices: list[int]) -> None:
    part = delta["block.weight"]
    with pytest.raises(CoordinateError, match="indices from 0 to 15"):
        dataclasses.replace(
            part,
            indices=torch.tensor(indices, dtype=torch.int32),
            before_bits=part.before_bits[:2],
            after_bits=part.after_bits[:2],
        )
    with pytest.raises(CoordinateError, match="1-D"):
        dataclasses.replace(part, indices=part.indices.long())
    with pytest.raises(CoordinateError, match="1-D"):
        dataclasses.replace(part, before_bits=part.before_bits[1:])
