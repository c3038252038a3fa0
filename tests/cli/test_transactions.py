"""`undo` and `verify`, after writes in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Checkpoints, differing, run, unchanged


@pytest.fixture
def model(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints.base, tmp_path / "model"))


def test_what_is_applied_in_place_can_be_undone(checkpoints: Checkpoints, model: Path) -> None:
    original = (model / "model.safetensors").read_bytes()
    assert run("undo", model).code == 3
    assert run("apply", model, checkpoints.delta, "--in-place").code == 0
    assert differing(model, checkpoints.tuned) == 0
    assert run("revert", model, checkpoints.delta, "--in-place").code == 0
    assert (model / "model.safetensors").read_bytes() == original
    listed = run("undo", model, "--list").out
    assert listed.index("revert") < listed.index("apply")
    records = run("undo", model, "--list", "--json").json["records"]
    assert [record["number"] for record in records] == [2, 1]
    assert {record["changed"] for record in records} == {differing(checkpoints.base, checkpoints.tuned)}
    with unchanged(model):
        assert "would be" in run("undo", model, "--dry-run").out
    assert run("undo", model, "--json").json["left"] == 1
    assert differing(model, checkpoints.tuned) == 0
    assert "are what they were before" in run("undo", model).out
    assert (model / "model.safetensors").read_bytes() == original
    assert sorted(p.name for p in model.iterdir()) == sorted(p.name for p in checkpoints.base.iterdir())


def test_undo_records_can_be_dropped(checkpoints: Checkpoints, model: Path) -> None:
    assert run("undo", model, "--forget").code == 3
    assert run("apply", model, checkpoints.delta, "--in-place").code == 0
    assert "nothing else" in run("apply", checkpoints.base, checkpoints.delta, "-o", model, "--force").fault
    (record,) = (model / ".rlforget").iterdir()
    size = record.stat().st_size
    with unchanged(model):
        assert f"{size:,} bytes would be dropped" in run("undo", model, "--forget", "--dry-run").out
        assert run("undo", model, "--forget", "--list").code == 2
    assert run("undo", model, "--forget", "--json").json["bytes"] == size
    assert run("undo", model, "--list", "--json").json["records"] == []
    assert differing(model, checkpoints.tuned) == 0
    assert run("apply", checkpoints.base, checkpoints.delta, "-o", model, "--force").code == 0


def test_undo_refuses_weights_that_moved_on(checkpoints: Checkpoints, model: Path) -> None:
    assert run("apply", model, checkpoints.delta, "--in-place").code == 0
    shutil.copyfile(checkpoints.base / "model.safetensors", model / "model.safetensors")
    with unchanged(model):
        assert "changed since by other means" in run("undo", model).fault
        assert "changed since by other means" in run("undo", model, "--dry-run").fault
        shown = run("verify", model)
        assert shown.code == 1
        assert "record: " in shown.out
        assert "--repair" in shown.err
    assert run("verify", model, "--repair").code == 0
    assert run("undo", model).code == 3


def test_verify_of_a_sound_checkpoint(checkpoints: Checkpoints, model: Path) -> None:
    with unchanged(model):
        assert run("verify", model).out.endswith(": sound\n")
        assert run("verify", model / "model.safetensors", "--json").json["sound"] is True
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])
    report = run("verify", model, "--json")
    assert report.code == 1
    assert [problem["kind"] for problem in report.json["problems"]] == ["unreadable"]


def test_verify_names_what_is_at_fault_once(model: Path, tmp_path: Path) -> None:
    assert " tensors in 1 file: sound" in run("verify", model).out
    empty = tmp_path / "empty"
    empty.mkdir()
    shown = run("verify", empty)
    assert shown.code == 1
    assert shown.out.splitlines()[0].startswith(f"unreadable: {empty}: expected a .safetensors file")


def test_verify_of_a_history(checkpoints: Checkpoints, tmp_path: Path) -> None:
    history = tmp_path / "history"
    assert run("init", checkpoints.base, "-H", history).code == 0
    assert run("commit", checkpoints.tuned, "-H", history, "-m", "math").code == 0
    assert "sound" in run("verify", history).out
    (delta,) = history.rglob("*.delta.safetensors")
    delta.chmod(0o644)
    delta.write_bytes(delta.read_bytes()[:-1])
    shown = run("verify", history)
    assert shown.code == 1
    assert "not sound" in shown.out
    assert run("verify", history, "--json").json["sound"] is False
