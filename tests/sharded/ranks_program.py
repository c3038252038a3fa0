"""One rank of all that is done with weights: by torchrun on shards of a model, or alone on the whole of it.

Writes FOLDER/<rank>.safetensors with what lies on this rank, by KEY/TENSOR, and FOLDER/<rank>.json with all numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

import rlforget as rf
from rlforget.errors import (
    ConfigError,
    CoordinateError,
    LayoutError,
    NonFiniteError,
    OutputError,
    WorldError,
)
from rlforget.weights import open_weights
from rlforget.weights.digest import weights_digest
from rlforget.weights.sharding import box_of, here, settle, sharding_of
from rlforget_kernels.common.bits import as_bits
from tests.interference.conftest import perturbed, tiny_model
from tests.sharded.forms import sharded

SCORES = ("fisher", "two_fisher", "taylor", "magnitude", "random", "opposed", "subspace")


class Told:
    """What a rank has to tell."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, Any] = {}

    def at(self, key: str, delta: rf.Delta, values: dict[str, Tensor], indices: dict[str, Tensor]) -> None:
        """Tell values at flat indices of whole tensors, of which this rank counts some."""
        for name, value in values.items():
            if delta.sharding is None or name in delta.sharding.counted:
                self.tensors[f"{key}/{name}/indices"] = indices[name].long().clone()
                self.tensors[f"{key}/{name}/values"] = value.clone()

    def weights(self, key: str, model: nn.Module) -> None:
        """Tell the bits of a model."""
        settle(model)
        named = dict(model.named_parameters())
        counted = sharding_of(named).counted if distributed.is_initialized() else named
        for name, parameter in named.items():
            if name in counted:
                box = box_of(parameter)
                self.tensors[f"{key}/{name}/indices"] = box.to_whole(torch.arange(box.numel))
                self.tensors[f"{key}/{name}/values"] = as_bits(here(parameter)).clone()


def batches(seed: int, *, labels: bool) -> list[dict[str, Any]]:
    ids = torch.randint(2, 13, (4, 7), generator=torch.Generator().manual_seed(seed))
    if labels:
        scored = ids.clone()
        scored[:, :3] = -100
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": scored}]
    return [{"input_ids": ids[:, :4], "attention_mask": torch.ones_like(ids[:, :4]), "max_new_tokens": 3}]


def main(folder: str, form: str, dtype: str) -> None:
    torch.set_num_threads(1)
    base = tiny_model()
    tuned = perturbed(base, 0.02, seed=1)
    first = perturbed(base, 0.02, seed=2)
    for model in (base, tuned, first):
        model.to(getattr(torch, dtype)).eval()
    if form != "alone":
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if form != "alone" else 0
    checkpoint = Path(folder) / "base"
    if rank == 0:
        rf.save_checkpoint(checkpoint, base)
    if form != "alone":
        distributed.barrier()
    told = Told()
    model, before, own = (sharded(one, form) for one in (tuned, base, first))
    _changes(told, model, before, checkpoint)
    _old_bits(told, model, checkpoint)
    _files(model, checkpoint, Path(folder) / "change.delta.safetensors")
    _written(told, model, checkpoint)
    if form != "alone":
        _refusals(model, checkpoint)
    if form not in ("alone", "states"):
        _on_one_rank(model, rf.diff(checkpoint, model))
    if form != "states":
        # Where columns are split, the ranks' coordinates take turns, and the random control has no place for them.
        scores = [score for score in SCORES if (form, score) != ("tensor", "random")]
        _damage(told, model, rf.diff(checkpoint, model))
        _recovery(told, model, rf.diff(checkpoint, model), rf.diff(checkpoint, own), scores)
    save_file(told.tensors, Path(folder) / f"{rank}.safetensors")
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told.numbers))
    if form != "alone":
        distributed.destroy_process_group()


def _changes(told: Told, model: Any, before: Any, checkpoint: Path) -> None:
    delta = rf.diff(checkpoint, model)
    assert dict(delta) == dict(rf.diff(before, model))
    told.at("before", delta, *_columns(delta, "before_bits"))
    told.at("after", delta, *_columns(delta, "after_bits"))
    told.numbers["fingerprints"] = [delta.fingerprint_before, delta.fingerprint_after]
    told.numbers["stats"] = delta.stats().to_dict()
    told.numbers["repr"] = repr(delta)
    half = delta.restrict([name for name in delta if "self_attn" in name])
    rest = delta.restrict([name for name in delta if "self_attn" not in name])
    told.numbers["half"] = [half.changed, half.fingerprint_after]
    assert rf.Delta.sum([half, rest]).fingerprint_after == delta.fingerprint_after
    assert delta.invert().then(delta).changed == 0
    whole = {name: here(tensor).clone() for name, tensor in _tensors(model).items()}
    rf.revert(model, half)
    told.numbers["reverted"] = rf.diff(checkpoint, model).fingerprint_after
    rf.apply(model, half)
    assert all(torch.equal(as_bits(here(t)), as_bits(whole[name])) for name, t in _tensors(model).items())


def _files(model: Any, checkpoint: Path, path: Path) -> None:
    delta = rf.diff(checkpoint, model)
    delta.save(path, force=True)
    assert rf.Delta.load(path, base=model) == delta
    now = {name: here(tensor).clone() for name, tensor in _tensors(model).items()}
    rf.revert(model, path)
    assert rf.diff(checkpoint, model).empty
    rf.apply(model, path)
    assert all(torch.equal(as_bits(here(t)), as_bits(now[name])) for name, t in _tensors(model).items())


def _written(told: Told, model: Any, checkpoint: Path) -> None:
    folder = checkpoint.parent
    rf.save_checkpoint(folder / "saved", model)
    rf.save_checkpoint(folder / "like", model, like=checkpoint)
    assert rf.diff(folder / "saved", model).empty
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    history = rf.History.init(folder / "history", checkpoint) if first else None
    if distributed.is_initialized():
        distributed.barrier()
    stage = (history or rf.History.open(folder / "history")).commit(model, name="tuned", message="on shards")
    told.numbers["stage"] = [stage.before, stage.after, stage.delta.sha256, stage.stats]
    told.numbers["digest"] = weights_digest(open_weights(model, shards=True))
    if distributed.is_initialized():
        with pytest.raises(OutputError):
            rf.save_checkpoint(folder / "saved", model)  # it is there: all ranks are told


def _refusals(model: Any, checkpoint: Path) -> None:
    path = checkpoint.parent / "change.delta.safetensors"
    whole = rf.Delta.load(path, base=checkpoint)
    assert whole.sharded(model) == rf.diff(checkpoint, model)
    part = rf.diff(checkpoint, model)
    for refused in (
        lambda: rf.revert(model, whole),
        lambda: rf.revert(checkpoint, part, checkpoint.parent / "reverted"),
        lambda: whole.sharded(checkpoint),
        lambda: whole.then(part),
        lambda: rf.overlap(part, part),
        lambda: rf.open_weights(model),
        lambda: rf.diff({"model.norm.weight": torch.zeros(3)}, model),
    ):
        with pytest.raises(LayoutError):
            refused()
    with pytest.raises(OutputError if distributed.get_rank() == 0 else WorldError):
        rf.diff(checkpoint, model).save(path)  # it is there: all ranks are told


def _on_one_rank(model: nn.Module, delta: rf.Delta) -> None:
    """What one rank alone has wrong, all are told of: none waits for it."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    wrong = {"model.norm.weight": torch.tensor([10**6])} if rank == 0 else {}
    for refused in (lambda: rf.rollback(model, delta, wrong), lambda: delta.restrict(wrong)):
        with pytest.raises(CoordinateError if rank == 0 else WorldError):
            refused()
    if ranks > 1:
        with pytest.raises(ConfigError, match="rank 1"):
            rf.fisher(model, batches(rank, labels=True), delta)  # as a sampler deals them out
    if hasattr(model, "set_requires_gradient_sync"):
        _while_it_accumulates(model, delta)
    with pytest.raises(LayoutError):
        rf.gradient_alignment(model, batches(0, labels=True), batches(1, labels=True))
    with pytest.raises(ConfigError, match='curvature="fisher"'):
        rf.damage(model, delta, batches(1, labels=True))
    _not_finite(model, delta)


def _while_it_accumulates(model: Any, delta: rf.Delta) -> None:
    """Gradients that a loop has gathered so far, and not synced, are neither taken nor added to."""
    expected = rf.fisher(model, batches(0, labels=True), delta)

    def accumulated(*, measured: bool) -> list[Tensor]:
        for k in range(3):
            model.set_requires_gradient_sync(k == 2)
            model(**batches(k, labels=True)[0]).loss.backward()
            if measured and k < 2:
                found = rf.fisher(model, batches(0, labels=True), delta)
                assert all(torch.equal(value, expected.values[name]) for name, value in found.values.items())
        gradients = [here(p.grad).clone() for p in model.parameters()]
        model.zero_grad()
        return gradients

    assert all(map(torch.equal, accumulated(measured=True), accumulated(measured=False)))


def _not_finite(model: nn.Module, delta: rf.Delta) -> None:
    """A number that is none lies on one rank, and on those that hold a copy of its shard; all name the parameter."""
    settle(model)
    parameter = dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"]
    local, box = here(parameter), box_of(parameter)
    kept, last = local.clone(), torch.tensor([parameter.numel() - 1])
    if bool(box.holds(last)):
        local[tuple(size - 1 for size in local.shape)] = float("nan")
    with pytest.raises(NonFiniteError, match="up_proj"):
        rf.fisher(model, batches(0, labels=True), delta)
    settle(model)
    local.copy_(kept)


def _damage(told: Told, model: nn.Module, delta: rf.Delta) -> None:
    """What the change costs, predicted and measured; sampled from the model before it, and given."""
    for labels in (False, True):
        given, key = batches(4, labels=labels), "given" if labels else "sampled"
        found = rf.damage(model, delta, given, curvature="fisher", by="layer")
        assert found.parts.keys() == {"outside", "0", "1"}
        told.numbers[f"damage, {key}"] = found.to_dict()
        told.numbers[f"damage curve, {key}"] = rf.damage_curve(model, delta, given, t=(0.5, 1.0)).to_dict()
    told.weights("after damage", model)
    nothing = rf.damage(model, rf.diff(model, model), batches(4, labels=False), curvature="fisher", by="layer")
    told.numbers["cost of no change"] = nothing.to_dict()


def _old_bits(told: Told, model: Any, checkpoint: Path) -> None:
    """Coordinates rolled back by a score that asks no model, which states are none of."""
    delta = rf.diff(checkpoint, model)
    chosen = rf.conflict(delta, score="magnitude").top(fraction=0.1)
    with rf.rollback(model, delta, chosen) as undo:
        told.numbers["old bits"] = [undo.report.to_dict(), rf.diff(checkpoint, model).fingerprint_after]
    assert rf.diff(checkpoint, model) == delta


def _tensors(model: Any) -> dict[str, Any]:
    if not isinstance(model, nn.Module):
        return dict(model)
    settle(model)
    return dict(model.named_parameters())


def _columns(delta: rf.Delta, column: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {n: getattr(t, column) for n, t in delta.items()}, {n: t.indices for n, t in delta.items()}


def _recovery(told: Told, model: nn.Module, delta: rf.Delta, own: rf.Delta, scores: list[str]) -> None:
    earlier = rf.fisher(model, batches(0, labels=False), delta, where="earlier")
    later = rf.fisher(model, batches(1, labels=True), delta)
    told.at("fisher", delta, earlier.values, _columns(delta, "indices")[1])
    told.at("gradient", delta, later.gradient, _columns(delta, "indices")[1])
    told.weights("after fisher", model)
    subspace = rf.conflict_subspace(
        model, delta, [batches(0, labels=False), batches(2, labels=True)], [batches(1, labels=True)], mu=1e-3
    )
    told.numbers["passes"] = [vars(one) for one in subspace.passes]
    told.numbers["norm"] = subspace.norm
    told.weights("after subspace", model)
    for score in scores:
        found = rf.conflict(delta, earlier=earlier, later=[later, earlier], own=own, subspace=subspace, score=score)
        told.at(f"score {score}", delta, found.scores, _columns(delta, "indices")[1])
        for per in ("model", "layer", "tensor"):
            chosen = found.top(fraction=0.05, per=per)
            told.at(f"top {score} {per}", delta, dict(chosen), dict(chosen))
    for what, strength in ((chosen, 1.0), (chosen, 0.5), (subspace, 1.0)):
        with rf.rollback(model, delta, what, strength=strength, seed=3) as undo:
            key = f"rollback {type(what).__name__} {strength}"
            told.weights(key, model)
            told.numbers[key] = undo.report.to_dict()
            with torch.no_grad():  # a forward pass gathers weights: those that were just written
                logits = model(input_ids=batches(5, labels=True)[0]["input_ids"]).logits
            told.tensors[f"{key}/logits/values"] = logits.clone()
        told.weights(f"after {key}", model)


if __name__ == "__main__":
    main(*sys.argv[1:])
