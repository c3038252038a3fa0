"""Histories of real checkpoints: whatever was committed comes back, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlforget as rf
from rlforget.errors import HistoryError, NothingToCommitError, OutputError, RlforgetError, WrongBaseError
from rlforget.history import History, Stage
from rlforget.history.store import Store
from rlforget.weights import DTYPES, open_weights
from tests.delta.random_weights import Tensors, random_tensor, same_bits, tuned, write_checkpoint

Chain = list[tuple[int, Tensors, dict[str, str]]]
"""For each state the place of its parent, what it holds, and what of it was called otherwise; the first is the base."""


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """Draw a tree of states: tuned, gone back, tied and untied, with tensors that come, go, change shape or dtype."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    names = ["model.layers.0.mlp.w", "model.layers.1.attn.q", "größe"]
    base = {"anchor": torch.ones(2)}
    for name in names[: draw(st.integers(0, 3))]:
        base[name] = random_tensor(draw(st.sampled_from(DTYPES)), draw(st.sampled_from([(), (0,), (5,), (4, 3)])), rng)
    _tie(base, draw(st.integers(0, 9)), rng)
    chain: Chain = [(0, base, {})]
    for place in range(1, 1 + draw(st.integers(0, 4))):
        parent = draw(st.integers(0, place - 1))
        storages = {id(tensor): tensor for tensor in chain[parent][1].values()}
        moved = {key: tuned(tensor, draw(st.sampled_from([0.0, 0.3, 1.0])), rng) for key, tensor in storages.items()}
        state = {name: moved[id(tensor)] for name, tensor in chain[parent][1].items()}
        for name in names:
            fate = draw(st.integers(0, 9))
            if fate == 0:
                state.pop(name, None)
            elif fate == 1:
                state[name] = random_tensor(draw(st.sampled_from(DTYPES)), draw(st.sampled_from([(3,), (2, 2)])), rng)
            elif fate == 2 and name in chain[0][1]:
                state[name] = chain[0][1][name].clone()
        _tie(state, draw(st.integers(0, 9)), rng)
        kept = [name for name in names if name in state and name in chain[parent][1]]
        shuffled = draw(st.permutations(kept)) if draw(st.booleans()) else kept
        renamed = {old: new for old, new in zip(kept, shuffled, strict=True) if old != new}
        chain.append((parent, {renamed.get(name, name): tensor for name, tensor in state.items()}, renamed))
    return chain


def _tie(state: Tensors, fate: int, rng: random.Random) -> None:
    """Tie `head` to the anchor, untie it with its bits or others, or leave one of the two out."""
    anchor = state.get("anchor")
    if anchor is None:
        return
    if fate < 2:
        state["head"] = anchor
    elif fate == 2:
        state["head"] = anchor.clone()
    elif fate == 3:
        state["head"] = tuned(anchor, 0.5, rng)
    elif fate == 4:
        state.pop("head", None)
    elif fate == 5 and state.get("head") is anchor:
        del state["anchor"]


def _written(folder: Path, state: Tensors, shards: int) -> Path:
    """Write a state as a checkpoint; tied tensors under the name that comes last."""
    kept = {id(tensor): name for name, tensor in state.items()}
    ties = {name: kept[id(tensor)] for name, tensor in state.items() if kept[id(tensor)] != name}
    return write_checkpoint(folder, {name: state[name] for name in kept.values()}, shards, ties)


@given(chains(), st.integers(0, 2), st.booleans())
@settings(max_examples=25)
def test_every_stage_is_what_was_committed(chain: Chain, shards: int, copy: bool) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        base = _written(folder / "base", chain[0][1], shards)
        history = History.init(folder / "history", base if shards else chain[0][1], copy=copy)
        stages: list[Stage | None] = [None]
        for place, (parent, state, renamed) in enumerate(chain[1:], start=1):
            weights = _written(folder / f"{place}", state, shards) if place % 2 else state
            stages.append(history.commit(weights, parent=stages[parent], rename=renamed, allow_empty=True))
        assert list(history.stages) == stages[1:]
        assert history.verify().faults == {}
        for place, (stage, (_, state, _)) in enumerate(zip(stages, chain, strict=True)):
            _holds(history.weights(stage), state)
            history.checkout(stage, folder / f"out{place}")
            _holds(open_weights(folder / f"out{place}"), state)
        before, after = stages[len(chain) // 2], stages[-1]
        _holds_after(history, before, after, chain[-1][1])


def _holds(weights: rf.Weights, state: Tensors) -> None:
    """Hold that weights have all tensors of a state, and no others; names that once were tied may stay."""
    assert {weights.canonical(name) for name in state} == set(weights.names())
    assert all(same_bits(weights.tensor(name), tensor) for name, tensor in state.items())


def _holds_after(history: History, before: str | Stage | None, after: str | Stage | None, state: Tensors) -> None:
    from rlforget.delta.composed import ComposedWeights
    from rlforget.delta.layers import MemoryLayer

    changed = ComposedWeights(history.weights(before), [MemoryLayer(history.delta(before, after))])
    _holds(changed, state)


def tuned_state(state: Tensors, seed: int) -> Tensors:
    return {name: tuned(tensor, 0.3, random.Random(seed)) for name, tensor in state.items()}


STATE: Tensors = {
    "model.layers.0.mlp.up_proj.weight": torch.linspace(-1, 1, 60).reshape(10, 6).bfloat16(),
    "model.embed_tokens.weight": torch.linspace(0, 1, 20).reshape(5, 4),
}
CODE, MATH = tuned_state(STATE, 1), tuned_state(tuned_state(STATE, 1), 2)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """base → code → math."""
    history = History.init(tmp_path / "history", write_checkpoint(tmp_path / "base", STATE, 0))
    history.commit(CODE, domain="code", message="GRPO on code", config={"steps": 60}, metrics={"code": 0.9})
    history.commit(MATH, domain="math", message="GRPO on math\n\nand more")
    return history


def test_a_stage_says_what_it_is(history: History) -> None:
    code, math = history.stages
    assert (code.name, code.domain, code.parent, math.parent) == ("code", "code", None, code.id)
    assert (dict(code.config), dict(code.metrics), math.title) == ({"steps": 60}, {"code": 0.9}, "GRPO on math")
    assert (code.before, code.after) == (history.base.fingerprint, math.before)
    changed = sum(int((a != b).sum()) for a, b in zip(STATE.values(), CODE.values(), strict=True))
    assert (code.stats["changed"], code.stats["numel"], code.stats["whole"]) == (changed, 80, 0)
    assert history.head == math
    assert history.log() == [math, code]
    assert history.log("code") == [code]
    assert [text for text, _ in history.graph()] == ["*", "*", "*"]
    assert code.short in repr(code)


def test_an_untied_tensor_is_sound(tmp_path: Path) -> None:
    embed = torch.linspace(-1, 1, 20).reshape(5, 4)
    base = write_checkpoint(tmp_path / "base", {"embed": embed}, 0, ties={"head": "embed"})
    history = History.init(tmp_path / "history", base)
    history.commit({"embed": embed, "head": embed + 1}, name="untied")
    history.commit({"embed": embed + 2, "head": embed + 1}, name="tuned")
    assert history.verify().faults == {}


def test_names_are_made_unique_and_taken_ones_refused(history: History) -> None:
    assert history.commit(CODE, domain="code").name == "code-2"
    assert history.commit(STATE, domain="data/My skills.jsonl").name == "My-skills"
    assert history.commit(MATH).name == "stage"
    assert history.commit(CODE, name="rollback").name == "rollback"
    for name in ("code", "HEAD", "a b"):
        with pytest.raises(HistoryError, match="new stage"):
            history.commit(MATH, name=name)


def test_stages_branch_and_go_back(history: History) -> None:
    first = history.commit(STATE, name="rollback-a", parent="code")
    second = history.commit(MATH, name="rollback-b", parent="code")
    assert first.parent == second.parent == history.stages[0].id
    assert [text for text, _ in history.graph()] == ["*", "| *", "|/", "| *", "|/", "*", "*"]
    assert history.stage("rollback-a").after == history.base.fingerprint  # type: ignore[union-attr]
    assert second.after == history.stages[1].after
    assert history.delta("rollback-b", "math").empty
    assert history.verify().sound


def test_nothing_to_commit(history: History) -> None:
    files = os.listdir(history.folder / "deltas")
    with pytest.raises(NothingToCommitError, match="math"):
        history.commit(MATH)
    assert os.listdir(history.folder / "deltas") == files
    assert history.commit(MATH, allow_empty=True, message="noted").stats["changed"] == 0


def test_a_delta_can_be_committed_on_its_parent_alone(history: History, tmp_path: Path) -> None:
    delta = rf.diff(CODE, STATE)
    with pytest.raises(WrongBaseError, match="'math'"):
        history.commit(delta)
    assert history.commit(delta, parent="code").after == history.base.fingerprint
    delta.save(tmp_path / "x.delta.safetensors")
    stage = history.commit(tmp_path / "x.delta.safetensors", parent="code")
    _holds(history.weights(stage), STATE)
    again = history.commit(rf.DeltaFile(tmp_path / "x.delta.safetensors"), parent="code")
    assert again.after == stage.after


def test_renamed_tensors_keep_their_past(history: History) -> None:
    old, new = "model.embed_tokens.weight", "embed.weight"
    state = {new if name == old else name: tensor for name, tensor in STATE.items()}
    stage = history.commit(state, rename={old: new})
    assert stage.stats["renamed"] == 1
    _holds(history.weights(), state)
    assert (history.blame(new).changes > 0).any()
    assert history.blame(new).total().numel == 20


def renamed_state(state: Tensors, names: dict[str, str]) -> Tensors:
    return {names.get(name, name): tensor for name, tensor in state.items()}


def test_a_delta_of_stages_knows_renames_on_both_ways(tmp_path: Path) -> None:
    base = {name: torch.arange(4.0) + place for place, name in enumerate("abc")}
    history = History.init(tmp_path / "history", write_checkpoint(tmp_path / "base", base, 0))
    left, right = {"a": "b", "b": "a", "c": "c1"}, {"a": "x", "b": "y", "c": "z"}
    history.commit(renamed_state(base, left), name="left", parent="base", rename=left)
    history.commit({**renamed_state(base, left), "new": torch.zeros(3)}, name="more")
    more = renamed_state({**renamed_state(base, left), "new": torch.ones(3)}, {"new": "newer"})
    history.commit(more, name="most", rename={"new": "newer"})
    history.commit(renamed_state(tuned_state(base, 3), right), name="right", parent="base", rename=right)
    assert history.delta("base", "left").renamed == left
    assert history.delta("left", "right").renamed == {"b": "x", "a": "y", "c1": "z"}
    assert history.delta("right", "base").renamed == {"x": "a", "y": "b", "z": "c"}
    assert history.delta("more", "most").renamed == {"new": "newer"}
    assert set(history.delta("right", "most").whole) == {"newer"}
    _holds_after(history, "right", "most", more)


def test_a_name_that_two_tensors_had_is_dropped_and_added(tmp_path: Path) -> None:
    base = {"keep": torch.ones(2), "a": torch.arange(4.0), "b": torch.arange(5)}
    history = History.init(tmp_path / "history", write_checkpoint(tmp_path / "base", base, 0))
    history.commit({"keep": base["keep"], "a": base["a"]}, name="dropped")
    last = {"keep": base["keep"], "b": base["a"]}
    history.commit(last, name="renamed", rename={"a": "b"})
    delta = history.delta("base", "renamed")
    assert (delta.renamed, set(delta.whole)) == ({}, {"a", "b"})
    _holds_after(history, "base", "renamed", last)
    _holds_after(history, "renamed", "base", base)


def test_the_longer_a_chain_the_fewer_frames_each_delta_keeps(history: History) -> None:
    def kept() -> list[int]:
        store = Store(history.folder, None)
        return [layer._file.kept_frames for layer in store.layers(history.index, history.head)]

    assert kept() == [4, 4]
    for seed in range(7):
        history.commit(tuned_state(STATE, seed))
    assert kept() == [1] * 9


def test_a_module_can_be_committed() -> None:
    model = torch.nn.Linear(3, 2)
    with TemporaryDirectory() as name:
        history = History.init(Path(name) / "history", model)
        with torch.no_grad():
            model.weight += 1
        history.commit(model, domain="math")
        _holds(history.weights(), dict(model.state_dict()))


def test_files_beside_the_weights_travel(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", STATE, 0)
    (base / "merges.txt").write_text("a b")
    history = History.init(tmp_path / "history", base)
    for number, state in enumerate((CODE, MATH)):
        tuned_folder = write_checkpoint(tmp_path / f"{number}", state, 0)
        (tuned_folder / "config.json").write_text(json.dumps({"step": number}))
        history.commit(tuned_folder)
    assert [stage.stats["files"] for stage in history.stages] == [2, 1]
    for number in (0, 1):
        history.checkout(f"HEAD~{1 - number}", tmp_path / f"out{number}")
        assert json.loads((tmp_path / f"out{number}" / "config.json").read_text()) == {"step": number}
        assert not (tmp_path / f"out{number}" / "merges.txt").exists()
    history.checkout("base", tmp_path / "out")
    assert (tmp_path / "out" / "merges.txt").read_text() == "a b"


def test_checkout_replaces_nothing_without_force(history: History, tmp_path: Path) -> None:
    out = tmp_path / "out"
    history.checkout("code", out)
    with pytest.raises(OutputError, match="exist"):
        history.checkout("math", out)
    _holds(open_weights(out), CODE)
    history.checkout("math", out, force=True)
    _holds(open_weights(out), MATH)
    assert sorted(os.listdir(tmp_path)) == ["base", "history", "out"]


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_history_goes_where_its_folder_goes(how: str, history: History, tmp_path: Path) -> None:
    History.init(history.folder, tmp_path / "base", copy=True)
    shutil.rmtree(tmp_path / "base")
    elsewhere = tmp_path / "a" / "b"
    elsewhere.parent.mkdir()
    (shutil.copytree if how == "copied" else shutil.move)(history.folder, elsewhere)
    there = History.open(elsewhere)
    assert there.verify().sound
    there.commit(CODE)
    there.checkout("math", tmp_path / "out")
    _holds(open_weights(tmp_path / "out"), MATH)
    assert not any(str(tmp_path) in path.read_text() for path in elsewhere.glob("*.json"))


def test_it_is_plain_files(history: History) -> None:
    for folder, folders, files in os.walk(history.folder):
        for name in files + folders:
            assert not name.startswith(".")
            assert not os.path.islink(os.path.join(folder, name))
    assert sorted(os.listdir(history.folder)) == ["deltas", "history.json", "history.lock"]


def test_a_base_that_moved_is_found_again(history: History, tmp_path: Path) -> None:
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(HistoryError, match="run init"):
        history.weights()
    assert "run init" in history.verify().faults["base"]
    _holds(History.open(history.folder, base=tmp_path / "moved").weights(), MATH)
    History.init(history.folder, tmp_path / "moved")
    _holds(history.weights(), MATH)


def test_another_base_is_never_composed_into_a_checkout(history: History, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", CODE, 0)
    cheated = History.open(history.folder, base=other)
    for reference in ("base", "code", "math"):
        with pytest.raises(RlforgetError):
            cheated.checkout(reference, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(HistoryError, match="changed since"):
        cheated.commit(STATE)
    assert len(history.stages) == len(os.listdir(history.folder / "deltas")) == 2
    assert set(cheated.verify().faults) == {"base", "code", "math"}


def test_reading_needs_no_permission_to_write(history: History, tmp_path: Path) -> None:
    History.init(history.folder, tmp_path / "base", copy=True)
    before = _all_of(history.folder)
    with _read_only(history.folder):
        there = History.open(history.folder)
        assert there.verify().sound
        assert len(there.log()) == 2
        there.checkout("code", tmp_path / "out")
        assert there.blame_summary().total.numel == 80
    assert _all_of(history.folder) == before  # whoever runs this may be root, whom permissions do not stop


def _all_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file and folder was last changed, and what it holds."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in [folder, *folder.rglob("*")]}


class _read_only:
    """Take the permission to write from a folder and all in it, for as long as the block lasts."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder, *folder.rglob("*")]

    def __enter__(self) -> None:
        for path in self._paths:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)

    def __exit__(self, *fault: object) -> None:
        for path in self._paths:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)


@pytest.mark.parametrize("values", [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}])
def test_what_is_no_json_is_refused(values: dict[str, object], history: History) -> None:
    for details in ({"metrics": values}, {"config": values}):
        with pytest.raises(HistoryError, match=r"JSON|text"):
            history.commit(STATE, **details)  # type: ignore[arg-type]
    assert len(history.stages) == len(os.listdir(history.folder / "deltas")) == 2


def test_tuples_and_numbers_as_keys_become_what_json_has(history: History) -> None:
    stage = history.commit(STATE, config={"betas": (0.9, 0.99), 3: None})
    assert dict(stage.config) == dict(history.stages[-1].config) == {"betas": [0.9, 0.99], "3": None}
