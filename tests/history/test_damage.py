"""What verify finds, what is refused of a damaged history, and what gc removes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlforget.errors import HistoryError, RlforgetError
from rlforget.history import History
from tests.delta.random_weights import Tensors, write_checkpoint
from tests.history.made import edited

STATES: list[Tensors] = [{"w": torch.arange(50.0) + number * (torch.arange(50) % 7 == number)} for number in range(4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    history = History.init(folder, write_checkpoint(folder / "first", STATES[0], 0), copy=True)
    history.commit(STATES[1], name="a")
    history.commit(STATES[2], name="b")
    history.commit(STATES[3], name="c", parent="a")
    return folder


@pytest.fixture
def history(made: Path, tmp_path: Path) -> History:
    """base → a → b, and c on a; the base is a copy."""
    shutil.copytree(made, tmp_path / "history")
    return History.open(tmp_path / "history")


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def resized(history: History) -> None:
    os.truncate(history.folder / history.stages[0].delta.file, 100)


def swapped(history: History) -> None:
    """Give the stage a another delta, sound in itself, under an index that says so."""
    a = history.stages[0].delta
    b = history.stages[1].delta
    shutil.copy(history.folder / b.file, history.folder / a.file)


DAMAGE: dict[str, tuple[Callable[[History], object], set[str]]] = {
    "a bit of the last delta": (lambda h: flipped(h.folder / h.stages[1].delta.file, -1), {"b"}),
    "a bit of the first delta": (lambda h: flipped(h.folder / h.stages[0].delta.file, -1), {"a", "b", "c"}),
    "a shorter delta": (resized, {"a", "b", "c"}),
    "a missing delta": (lambda h: (h.folder / h.stages[2].delta.file).unlink(), {"c"}),
    "another delta": (swapped, {"a", "b", "c"}),
    "a bit of the base": (lambda h: flipped(h.folder / "base" / "model.safetensors", -1), {"base", "a", "b", "c"}),
    "a missing base": (lambda h: shutil.rmtree(h.folder / "base"), {"base", "a", "b", "c"}),
    "a file beside the base": (lambda h: (h.folder / "base" / "config.json").write_text("[]"), {"base"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_what_is_damaged(damage: str, history: History) -> None:
    damaging, hurt = DAMAGE[damage]
    damaging(history)
    found = History.open(history.folder).verify()
    assert set(found.faults) == hurt
    assert found.checked == ("base", "a", "b", "c")
    assert not found.sound
    assert found.to_dict()["sound"] is False


@pytest.mark.parametrize("damage", [name for name in DAMAGE if "beside" not in name])
def test_a_damaged_stage_is_never_checked_out(damage: str, history: History, tmp_path: Path) -> None:
    damaging, hurt = DAMAGE[damage]
    damaging(history)
    damaged = History.open(history.folder)
    for name in ("base", "a", "b", "c"):
        out = tmp_path / name
        if name in hurt:
            with pytest.raises(RlforgetError):
                damaged.checkout(name, out)
            assert not out.exists()
        else:
            damaged.checkout(name, out)


def test_a_whole_history_is_sound(history: History) -> None:
    seen: list[tuple[int, int]] = []
    assert history.verify(progress=lambda done, total: seen.append((done, total))).sound
    assert seen[-1] == (4, 4)


def test_no_link_is_followed(history: History, tmp_path: Path) -> None:
    delta = history.folder / history.stages[0].delta.file
    shutil.move(delta, tmp_path / "outside")
    delta.symlink_to(tmp_path / "outside")
    with pytest.raises(HistoryError, match="link"):
        history.weights("a")
    delta.unlink()
    shutil.move(tmp_path / "outside", delta)
    shutil.move(history.folder / "deltas", tmp_path / "outside")
    (history.folder / "deltas").symlink_to(tmp_path / "outside")
    with pytest.raises(HistoryError, match="link"):
        history.weights("a")
    with pytest.raises(RlforgetError, match="link"):
        history.commit(STATES[3])
    (tmp_path / "outside" / "0009-x.delta.safetensors").touch()
    assert not history.gc().files
    weights = history.folder / "base" / "model.safetensors"
    shutil.move(weights, tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside" / weights.name)
    with pytest.raises(HistoryError, match="link"):
        history.weights("base")
    weights.unlink()
    shutil.move(tmp_path / "outside" / weights.name, weights)
    shutil.move(history.folder / "base", tmp_path / "base")
    (history.folder / "base").symlink_to(tmp_path / "base")
    with pytest.raises(HistoryError, match="link"):
        history.weights("base")


def test_gc_removes_what_nobody_needs_and_nothing_else(history: History) -> None:
    assert not history.gc().files
    precious = [history.folder / "notes.txt", history.folder / "deltas" / "notes.txt"]
    orphan = history.folder / "deltas" / "0009-x.delta.safetensors"
    draft = history.folder / f".rlforget-{'0' * 16}.partial"
    for path in (*precious, orphan, draft):
        path.write_text("12345")
    wanted = {"deltas/0009-x.delta.safetensors": 5, draft.name: 5}
    assert history.gc(dry_run=True).files == wanted
    assert orphan.exists()
    assert history.gc().files == wanted
    assert not orphan.exists()
    assert not draft.exists()
    assert all(path.exists() for path in precious)
    assert history.verify().sound


def test_gc_drops_by_name_a_stage_and_what_came_from_it(history: History) -> None:
    a, b, c = history.stages
    removed = history.gc(drop=["b"])
    assert [stage.name for stage in removed.stages] == ["b"]
    assert list(removed.files) == [b.delta.file]
    assert history.stages == (a, c)
    assert history.verify().sound
    assert history.commit(STATES[2], name="again").delta.file not in (a.delta.file, c.delta.file)
    assert [stage.name for stage in history.gc(drop=["a"]).stages] == ["a", "c", "again"]
    assert history.stages == ()
    assert os.listdir(history.folder / "deltas") == []


def test_gc_drops_nothing_that_is_tagged(history: History) -> None:
    history.tag("best", "b")
    for dropped in ("a", "b"):
        with pytest.raises(HistoryError, match="tag"):
            history.gc(drop=[dropped])
    with pytest.raises(HistoryError, match="base"):
        history.gc(drop=["base"])
    with pytest.raises(HistoryError):
        history.gc(drop=["nothing"])
    assert len(history.stages) == 3
    assert [stage.name for stage in history.gc(drop=["c"], dry_run=True).stages] == ["c"]
    assert len(history.stages) == 3


def test_an_orphan_of_a_killed_commit_is_in_nobodys_way(history: History) -> None:
    (history.folder / "deltas" / "0004-d.delta.safetensors").write_text("half")
    assert history.commit(STATES[0], name="d").delta.file == "deltas/0004-d.delta.safetensors"
    assert history.verify().sound


def test_a_delta_that_leads_elsewhere_than_its_index_says(history: History) -> None:
    def forge(raw: dict[str, list[dict[str, object]]]) -> None:
        from rlforget.history.stage import stage_id

        stage = raw["stages"][2]
        stage["after"] = "0" * 32
        stage["id"] = stage_id(stage)

    edited(history.folder, forge)
    with pytest.raises(HistoryError, match="lead to"):
        history.checkout("c", history.folder.parent / "out")
    assert set(history.verify().faults) == {"c"}


@pytest.mark.parametrize("path", ["x" * 5000, "../" * 2000, "/dev/zero", "/dev/stdin", "history.json", "deltas"])
def test_a_base_that_is_none(path: str, history: History) -> None:
    edited(history.folder, lambda raw: raw["base"].update(path=path, copied=False))
    with pytest.raises(HistoryError, match="its base"):
        history.weights("base")


def test_a_single_file_history(tmp_path: Path) -> None:
    save_file(STATES[0], tmp_path / "base.safetensors")
    history = History.init(tmp_path / "history", tmp_path / "base.safetensors")
    history.commit(STATES[1], name="a")
    history.checkout("a", tmp_path / "out.safetensors")
    history.checkout("base", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "base.safetensors").read_bytes()
    assert history.verify().sound
