"""`conflict` and `rollback` on checkpoint folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rlforget as rf
from rlforget.cli import models
from tests.cli.conftest import Checkpoints, differing, run, tensors, unchanged

FEW = ("--samples", 4)
MATH = ("--restore", "math", "--protect", "writing")


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("fisher", ("--restore", "math")),
        ("taylor", ("--restore", "math", "--restore", "code")),
        ("two_fisher", MATH),
        ("subspace", MATH),
        ("magnitude", ()),
        ("random", ("--seed", 3)),
    ],
)
def test_rollback_puts_old_bits_at_few_coordinates(
    rule: str, options: tuple[object, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, "--rule", rule, *options, *FEW, "-o", out)
    report = run(*asked, "--budget", 0.05, "--json").json
    numel = rf.DeltaFile(checkpoints.delta).numel
    assert report["coordinates"] == report["written"] == round(0.05 * numel)
    assert differing(out, checkpoints.tuned) == report["written"]
    assert differing(out, checkpoints.base) == differing(checkpoints.base, checkpoints.tuned) - report["written"]


def test_rollback_with_the_earlier_domains_own_delta(checkpoints: Checkpoints, tmp_path: Path) -> None:
    own = tmp_path / "own.delta.safetensors"
    assert run("diff", checkpoints.tuned, checkpoints.base, "-o", own).code == 0  # exactly opposed
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, "--rule", "opposed", "--own", own, "--budget", 1)
    assert run(*asked, "-o", tmp_path / "out").code == 0
    assert differing(tmp_path / "out", checkpoints.base) == 0


@pytest.mark.parametrize("rule", ["dense", "dense_twice", "kronecker", "soft"])
def test_rollback_of_a_whole_correction(rule: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, *MATH, *FEW, "--rule", rule, "-o", out)
    report = run(*asked, "--json").json
    assert report["written"] == differing(out, checkpoints.tuned) > 0
    assert 0 < report["norm_share"] < 1
    assert report["out"] == str(out)


def test_a_budget_alone_is_by_the_subspace(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, *MATH, *FEW, "--budget", 0.05)
    report = run(*asked, "-o", tmp_path / "one", "--json").json
    assert report["coordinates"] == round(0.05 * rf.DeltaFile(checkpoints.delta).numel)
    assert run(*asked, "--rule", "subspace", "-o", tmp_path / "two").code == 0
    assert differing(tmp_path / "one", tmp_path / "two") == 0


def test_the_numbers_of_a_rule_are_passed_on(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """As the library takes them, to the bit; and each of them matters."""
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, *MATH, *FEW)
    numbers = ("--lam", 3, "--mu", 0.1, "--rows", "token", "--row-budget", 5)
    assert run(*asked, *numbers, "-o", tmp_path / "all").code == 0
    loaded = models.load(str(checkpoints.tuned), "cpu")
    delta = rf.Delta.load(checkpoints.delta, base=checkpoints.tuned)
    given: dict[str, Any] = {"lam": 3.0, "mu": 0.1, "rows": "token", "row_budget": 5}
    subspace = rf.conflict_subspace(
        loaded.model, delta, ["math"], ["writing"], **given, samples=FEW[1], tokenizer=loaded.tokenizer
    )
    rf.rollback(loaded.model, delta, subspace)
    assert not rf.diff(tmp_path / "all", loaded.model).changed
    for place in range(0, len(numbers), 2):
        others = numbers[:place] + numbers[place + 2 :]
        assert run(*asked, *others, "-o", tmp_path / "most", "--force").code == 0
        assert differing(tmp_path / "all", tmp_path / "most") > 0


def test_a_number_that_is_none_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    ended = run("rollback", checkpoints.tuned, checkpoints.delta, *MATH, "--lam", "much", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "'much'" in ended.err


def test_rollback_by_a_share(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, "--rule", "magnitude", "--budget", 1)
    assert run(*asked, "--strength", 0.5, "-o", out).code == 0
    before, after, now = tensors(checkpoints.base), tensors(checkpoints.tuned), tensors(out)
    for name, value in now.items():
        torch.testing.assert_close(value, (before[name] + after[name]) / 2)


def test_rollback_tells_the_rewards(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("rollback", checkpoints.tuned, checkpoints.delta, *MATH, *FEW, "--evaluate", "-o", tmp_path / "out")
    with unchanged(tmp_path):
        found = run(*asked, "--dry-run", "--json").json
    assert found["out"] is None
    assert all(set(found["rewards"][when]) == {"math", "writing"} for when in ("before", "after"))
    shown = run(*asked).out
    assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["math", "writing"]
    score = found["rewards"]["before"]["math"]
    assert f"{score['mean']:.3f} ± {score['stderr']:.3f}" in shown
    assert f"wrote {tmp_path / 'out'}" in shown


def test_the_same_seed_gives_the_same_bits(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name in ("one", "two"):
        asked = ("rollback", checkpoints.tuned, checkpoints.delta, *MATH, *FEW, "-o", tmp_path / name)
        assert run(*asked).code == 0
    assert differing(tmp_path / "one", tmp_path / "two") == 0


@pytest.mark.parametrize("command", ["conflict", "rollback"])
def test_a_delta_without_changes_is_nothing_to_do(command: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    empty = tmp_path / "empty.delta.safetensors"
    assert run("diff", checkpoints.base, checkpoints.base, "-o", empty).code == 0
    out = ("-o", tmp_path / "out") if command == "rollback" else ()
    with unchanged(tmp_path):
        ended = run(command, checkpoints.base, empty, "--rule", "random", *out)
    assert ended.code == 3
    assert "nothing to do" in ended.err


@pytest.mark.parametrize("command", ["conflict", "rollback"])
def test_a_model_that_the_delta_does_not_lead_to_is_refused(
    command: str, checkpoints: Checkpoints, other: Path, tmp_path: Path
) -> None:
    out = ("-o", tmp_path / "out") if command == "rollback" else ()
    with unchanged(tmp_path):
        how = ("--rule", "random", *out)
        assert "apply the delta" in run(command, checkpoints.base, checkpoints.delta, *how).fault
        assert "float32[64, 16]" in run(command, other, checkpoints.delta, *how).fault


@pytest.mark.parametrize(
    ("option", "others"),
    [
        (("--where", "now"), ("--rule", "dense")),
        (("--where", "now"), ("--auto",)),
        (("--validation", 8), ("--rule", "fisher")),
        (("--own", "own.safetensors"), ("--rule", "two_fisher")),
        (("--base", "base"), ()),
        (("--mu", "1e-3"), ("--rule", "soft")),
        (("--lam", "auto"), ("--rule", "kronecker")),
        (("--rows", "token"), ("--rule", "fisher")),
        (("--row-budget", 5), ("--auto",)),
        (("--protect", "math"), ()),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    option: tuple[object, ...], others: tuple[str, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    with unchanged(tmp_path):
        ended = run("rollback", checkpoints.tuned, checkpoints.delta, *MATH, *option, *others, "-o", tmp_path / "out")
    assert ended.code == 2
    assert str(option[0]) in ended.err


def test_an_existing_output_is_refused_before_any_work(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlforget.cli.models.load", lambda *_: pytest.fail("the model was loaded"))
    ended = run("rollback", checkpoints.tuned, checkpoints.delta, "--rule", "random", "-o", tmp_path)
    assert "exist" in ended.fault


def test_rollback_in_place_is_undone_by_a_later_process(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoints.tuned, model)
    asked = ("rollback", model, checkpoints.delta, "--rule", "magnitude", "--budget", 0.01, "--in-place", "--json")
    report = run(*asked).json
    assert report["in_place"]
    assert report["written"] == differing(model, checkpoints.tuned) > 0
    command = [sys.executable, "-m", "rlforget", "undo", str(model)]
    subprocess.run(command, check=True, capture_output=True)
    assert differing(model, checkpoints.tuned) == 0


def test_the_shipped_miniature_is_not_changed_in_place(checkpoints: Checkpoints) -> None:
    refused = run("rollback", "miniature", checkpoints.delta, "--rule", "magnitude", "--in-place")
    assert refused.code == 2
    assert "miniature" in refused.err
