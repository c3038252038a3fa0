"""`export` on checkpoint folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rlforget as rf
from tests.cli.conftest import Checkpoints, run, tensors, unchanged

FORMATS = {"task-vector": (), "lora": ("--rank", 2), "mergekit": (), "safetensors": ()}


def export(checkpoints: Checkpoints, out: Path, form: str, *more: object) -> tuple[object, ...]:
    return ("export", checkpoints.delta, "--base", checkpoints.base, "-o", out, "--format", form, *FORMATS[form], *more)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_written_once_and_replaced_by_force(
    form: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with unchanged(tmp_path):
        assert f"would write {out}" in run(*export(checkpoints, out, form, "--dry-run")).out
    shown = run(*export(checkpoints, out, form))
    assert f"wrote {out}" in shown.out
    with unchanged(tmp_path):
        assert "--force" in run(*export(checkpoints, out, form)).fault
        assert "--force" in run(*export(checkpoints, out, form, "--dry-run")).fault
    told = run(*export(checkpoints, out, form, "--json", "--force")).json
    assert (told["format"], told["out"]) == (form, str(out))
    assert run(*export(checkpoints, out, form, "--json", "--force", "--dry-run")).json == {**told, "out": None}


def test_a_task_vector_leads_from_the_base_to_the_model(checkpoints: Checkpoints, tmp_path: Path) -> None:
    told = run(*export(checkpoints, tmp_path / "out", "task-vector", "--dtype", "float64", "--json")).json
    vector, base, tuned = (tensors(folder) for folder in (tmp_path / "out", checkpoints.base, checkpoints.tuned))
    assert all(torch.equal((base[name].double() + vector[name]).float(), tuned[name]) for name in tuned)
    assert (told["dtype"], told["inexact"], told["tensors"]) == ("float64", 0, len(tuned))


def test_a_lora_is_an_adapter_with_its_error(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = run(*export(checkpoints, out, "lora", "--target", "q_proj", "--target", "up_proj", "--top", 3))
    assert "energy kept" in shown.out
    assert "left out" in shown.out
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    told = run(*export(checkpoints, out, "lora", "--save-rest", "--json", "--force")).json
    assert 0 < told["total"]["error"] < 1
    assert told["total"]["kept"] == pytest.approx(1 - told["total"]["error"] ** 2)
    assert told["left_out"] == {}
    assert "model.embed_tokens.weight" in told["saved"]


def test_a_model_for_mergekit_is_the_one_after(checkpoints: Checkpoints, tmp_path: Path) -> None:
    import yaml

    out = tmp_path / "with + and @"
    assert run(*export(checkpoints, out, "mergekit")).code == 0
    assert all(torch.equal(tensor, tensors(checkpoints.tuned)[name]) for name, tensor in tensors(out).items())
    recipe = yaml.safe_load((out / "mergekit.yml").read_text(encoding="utf-8"))
    assert recipe["base_model"] == str(checkpoints.base)
    assert recipe["models"] == [{"model": {"model": {"path": str(out)}}, "parameters": {"weight": 1.0}}]
    assert (recipe["merge_method"], recipe["dtype"], recipe["out_dtype"]) == ("task_arithmetic", "float32", "float32")
    after = ("export", checkpoints.delta, "--base", checkpoints.tuned, "--format", "mergekit", "-o", tmp_path / "other")
    assert "before the change" in run(*after).fault


def test_plain_tensors_hold_all_that_changed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "plain.safetensors"
    changed = rf.diff(checkpoints.base, checkpoints.tuned)
    assert f"{changed.changed:,} coordinates" in run(*export(checkpoints, out, "safetensors")).out
    plain = load_file(out)
    for name, tensor in changed.items():
        assert torch.equal(plain[f"{name}.indices"], tensor.indices)
        assert torch.equal(plain[f"{name}.before"], tensor.before)
        assert torch.equal(plain[f"{name}.after"], tensor.after)


def test_bad_input_is_one_line(checkpoints: Checkpoints, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lora = ("--format", "lora", "--rank", 2)
    for wrong in ((checkpoints.delta, "-o", out, *lora), (tmp_path / "none", "--base", other, "-o", out, *lora)):
        assert run("export", *wrong).fault
    assert "up_proj" not in run(*export(checkpoints, out, "lora", "--target", "qproj")).fault.split("found")[0]
    assert run("export", checkpoints.delta, "--base", other, "-o", out, *lora).fault
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "lora"),
        ("--format", "lora", "--rank", 0),
        ("--format", "task-vector", "--rank", 3),
        ("--format", "safetensors", "--dtype", "float16"),
        ("--format", "mergekit"),
        ("--format", "gguf"),
        (),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    options: tuple[object, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    assert run("export", checkpoints.delta, "-o", tmp_path / "out", *options).code == 2
