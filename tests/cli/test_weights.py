"""`diff`, `apply`, `revert` on checkpoint folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rlforget as rf
from tests.cli.conftest import Checkpoints, differing, run, tensors, unchanged


def test_diff_shows_and_saves_every_change(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "x.delta.safetensors"
    shown = run("diff", checkpoints.base, checkpoints.tuned, "-o", out, "--top", 2)
    assert shown.code == 0
    changed = differing(checkpoints.base, checkpoints.tuned)
    assert f"{changed:,} of " in shown.out
    assert f"wrote {out}" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    saved = rf.Delta.load(out, base=checkpoints.tuned)
    assert saved.changed == changed
    most = max(saved.values(), key=lambda tensor: tensor.changed)
    row = next(line for line in shown.out.splitlines() if line.startswith(most.name))
    assert row.split()[1:3] == [f"{most.changed:,}", f"{most.numel:,}"]


def test_diff_for_programs(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "x.delta.safetensors"
    shown = run("diff", checkpoints.base, checkpoints.tuned, "-o", out, "--top", 3, "--json").json
    assert shown["total"]["changed"] == differing(checkpoints.base, checkpoints.tuned)
    counts = [tensor["changed"] for tensor in shown["top"]]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 3
    assert shown["saved"] == str(out)


def test_diff_draws_what_it_shows(checkpoints: Checkpoints, tmp_path: Path) -> None:
    picture = tmp_path / "x.svg"
    both = checkpoints.base, checkpoints.tuned
    assert f"would write {picture}" in run("diff", *both, "--plot", picture, "--dry-run").out
    assert not picture.exists()
    assert f"wrote {picture}" in run("diff", *both, "--plot", picture).out
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert str(picture) in run("diff", *both, "--plot", picture).fault
    assert run("diff", *both, "--plot", picture, "--force", "--json").json["plot"] == str(picture)
    assert ".png" in run("diff", *both, "--plot", tmp_path / "x.pdf").fault


def test_json_holds_what_json_lacks_as_null(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", float("inf"))):
        save_file({"w": torch.tensor([value])}, tmp_path / f"{name}.safetensors")
    shown = run("diff", tmp_path / "one.safetensors", tmp_path / "two.safetensors", "--json").json
    assert shown["total"]["non_finite"] == 1


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_exit_code_tells_differences(checkpoints: Checkpoints, flags: tuple[str, ...]) -> None:
    assert run("diff", checkpoints.base, checkpoints.tuned, "--exit-code", *flags).code == 3
    assert run("diff", checkpoints.base, checkpoints.base, "--exit-code", *flags).code == 0
    assert run("diff", checkpoints.base, checkpoints.tuned, *flags).code == 0


def test_apply_and_revert_are_exact(checkpoints: Checkpoints, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    shown = run("apply", checkpoints.base, checkpoints.delta, "-o", there)
    assert shown.code == 0
    assert f"wrote {there}" in shown.out
    assert differing(there, checkpoints.tuned) == 0
    assert (there / "config.json").read_bytes() == (checkpoints.base / "config.json").read_bytes()
    assert run("revert", there, checkpoints.delta, "-o", back, "--json").json["out"] == str(back)
    assert (back / "model.safetensors").read_bytes() == (checkpoints.base / "model.safetensors").read_bytes()


@pytest.mark.parametrize("flags", [(), ("--json",)])
@pytest.mark.parametrize("command", ["diff", "apply", "revert"])
def test_dry_run_writes_nothing(command: str, flags: tuple[str, ...], checkpoints: Checkpoints, tmp_path: Path) -> None:
    first = checkpoints.tuned if command == "revert" else checkpoints.base
    second = checkpoints.tuned if command == "diff" else checkpoints.delta
    with unchanged(tmp_path):
        assert run(command, first, second, "-o", tmp_path / "out", "--dry-run", *flags).code == 0


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_delta_for_other_weights_is_refused(
    flags: tuple[str, ...], checkpoints: Checkpoints, other: Path, tmp_path: Path
) -> None:
    delta, flags = checkpoints.delta, ("-o", tmp_path / "out", *flags)
    with unchanged(tmp_path):
        assert "is there already" in run("apply", checkpoints.tuned, delta, *flags).fault
        assert "is there already" in run("revert", checkpoints.base, delta, *flags).fault
        assert "model.embed_tokens.weight" in run("apply", other, delta, *flags).fault


def test_nothing_is_overwritten_without_force(checkpoints: Checkpoints, tmp_path: Path) -> None:
    file, folder = tmp_path / "x.delta.safetensors", tmp_path / "model"
    file.write_text("precious")
    shutil.copytree(checkpoints.base, folder)
    commands = (
        ("diff", checkpoints.base, checkpoints.tuned, "-o", file),
        ("apply", checkpoints.base, checkpoints.delta, "-o", folder),
        ("revert", checkpoints.tuned, checkpoints.delta, "-o", folder),
    )
    with unchanged(tmp_path):
        for command in commands:
            assert "exist" in run(*command).fault
            assert "exist" in run(*command, "--dry-run").fault
    assert run(*commands[0], "--force").code == 0
    assert rf.DeltaFile(file).changed == differing(checkpoints.base, checkpoints.tuned)
    assert run(*commands[1], "--force").code == 0
    assert differing(folder, checkpoints.tuned) == 0


def test_force_never_deletes_what_is_no_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("precious")
    with unchanged(tmp_path):
        assert "thesis" in run("apply", checkpoints.base, checkpoints.delta, "-o", folder, "--force").fault


def test_single_files_are_checkpoints_too(checkpoints: Checkpoints, tmp_path: Path) -> None:
    delta, out = tmp_path / "x.delta.safetensors", tmp_path / "out.safetensors"
    before, after = (folder / "model.safetensors" for folder in (checkpoints.base, checkpoints.tuned))
    assert run("diff", before, after, "-o", delta).code == 0
    assert run("apply", before, delta, "-o", out).code == 0
    wanted = tensors(checkpoints.tuned)
    assert all(
        torch.equal(value.view(torch.int32), wanted[name].view(torch.int32)) for name, value in load_file(out).items()
    )


def test_in_place_and_undone(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoints.base, model)
    done = run("apply", model, checkpoints.delta, "--in-place", "--json").json
    assert done["in_place"]
    assert done["out"] is None
    assert differing(model, checkpoints.tuned) == 0
    assert "wrote" in run("revert", model, checkpoints.delta, "--in-place").out
    assert differing(model, checkpoints.base) == 0
    assert run("undo", model).code == 0
    assert differing(model, checkpoints.tuned) == 0


@pytest.mark.parametrize("options", [(), ("--in-place", "-o", "out")], ids=["neither", "both"])
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_where_to_write_is_said_once(command: str, options: tuple[str, ...], checkpoints: Checkpoints) -> None:
    refused = run(command, checkpoints.base, checkpoints.delta, *options)
    assert refused.code == 2
    assert "--in-place" in refused.err


def test_tensors_may_be_called_otherwise(tmp_path: Path) -> None:
    save_file({"old": torch.zeros(3), "same": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"new": torch.ones(3), "same": torch.ones(2)}, tmp_path / "two.safetensors")
    delta, pair = tmp_path / "x.delta.safetensors", (tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    shown = run("diff", *pair, "--rename", "old=new", "--self-contained", "-o", delta, "--json").json
    assert shown["renamed"] == {"old": "new"}
    assert shown["total"]["changed"] == 3
    assert rf.Delta.load(delta)["old"].before.tolist() == [0, 0, 0]
    assert run("apply", pair[0], delta, "-o", tmp_path / "out.safetensors").code == 0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["new"], torch.ones(3))
    assert run("diff", *pair, "--rename", "old").code == 2
    assert "gone" in run("diff", *pair, "--rename", "gone=new").fault
    shown = run("diff", *pair, "--json").json
    assert shown["whole"] == {"old": "removed", "new": "added"}
    assert run("diff", *pair, "--exit-code").code == 3


def test_what_changed_beside_the_weights_is_shown(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoints.base, model)
    (model / "notes.txt").write_text("new")
    shown = run("diff", checkpoints.base, model, "--exit-code")
    assert shown.code == 3
    assert "added file: notes.txt" in shown.out
