"""`rollback` on a history, and `--auto` on either: what it starts from, what it says, what it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlforget as rf
from rlforget.cli import models
from rlforget.domains import BUILT_IN
from rlforget.recovery import candidates
from rlforget.training.quiet import quiet
from tests.cli.conftest import differing, run, unchanged
from tests.recovery.digits import Digits, forgetful

FEW = ("--samples", 8, "--validation", 16)
SKILLS = {"math": ("M", "7"), "writing": ("Q", "3"), "code": ("X", "5")}


def toy(name: str) -> Callable[[], Digits]:
    def make() -> Digits:
        domain = Digits(*SKILLS[name])
        domain.name = name
        return domain

    return make


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the toy skills the names of built-in ones, and try few rules: the search has tests of its own."""
    monkeypatch.setattr(candidates, "RULES", {"dense": (1.0,), "fisher": ()})
    for name in SKILLS:
        monkeypatch.setitem(BUILT_IN, name, toy(name))  # type: ignore[misc]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `math` and `writing`, the second trained on from the first, and a history of both on `base`."""
    root = tmp_path_factory.mktemp("stages")
    scene = forgetful()
    base = forgetful_base(scene)
    for name, model in (("base", base), ("math", scene.earlier), ("writing", scene.model)):
        with quiet():
            model.save_pretrained(root / name)
            scene.tokenizer.save_pretrained(root / name)
    history = rf.History.init(root / "history", root / "base")
    for name in ("math", "writing"):
        history.commit(root / name, domain=name, message=f"{name}, trained")
    scene.delta.save(root / "writing.delta.safetensors")
    return root


def forgetful_base(scene: Any) -> Any:
    """What the sequence began with: here simply other weights."""
    import copy

    import torch

    base = copy.deepcopy(scene.earlier)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(0.5)
    return base


@pytest.fixture
def history(stages: Path, tmp_path: Path) -> Path:
    shutil.copytree(stages / "history", tmp_path / "history")
    shutil.copytree(stages / "base", tmp_path / "base")
    return tmp_path / "history"


def test_auto_adds_a_stage_and_says_in_five_lines_what_it_did(history: Path, tmp_path: Path) -> None:
    picture = tmp_path / "front.svg"
    ended = run("rollback", history, "--restore", "math", "--auto", *FEW, "--plot", picture)
    assert ended.code == 0, ended.err
    tried, took, shares, written, kept = ended.out.splitlines()
    assert "since stage math" in tried
    assert took.startswith("took ")
    assert "regained" in shares
    assert "math" in shares
    assert "writing" in shares  # what was committed since
    assert "coordinates written" in written
    assert kept == "committed stage math-2 on writing"
    svg = picture.read_text()
    assert all(word in svg for word in ("math", "writing", "controls", "front"))
    opened = rf.History.open(history)
    stage = opened.stage("HEAD")
    assert stage is not None
    assert (stage.domain, opened.stage("HEAD~1")) == ("math", opened.stage("writing"))
    assert took.removeprefix("took ") in stage.message
    assert stage.config["restore"] == ["math"]
    assert stage.config["protect"] == ["writing"]
    assert stage.metrics["regained"] > 0.7
    assert 0.0 <= stage.metrics["math"] <= 1.0
    assert opened.verify().sound
    assert opened.delta("writing", "HEAD").changed > 0


def test_a_dry_run_tells_all_and_writes_nothing(history: Path, tmp_path: Path) -> None:
    picture = tmp_path / "front.png"
    asked = ("rollback", "-H", history, "--restore", "math", "--auto", *FEW, "--plot", picture, "--dry-run", "--json")
    with unchanged(tmp_path):
        found = run(*asked).json
    assert found["stage"] is None
    assert found["parent"] == "writing"
    assert found["restore"] == ["math"]
    assert found["protect"] == ["writing"]
    assert len(found["validation"]["trials"]) == 1 + 3 + 3 + 3 + 1
    assert {"random", "magnitude", "random_subspace"} == {
        trial["candidate"]["rule"] for trial in found["validation"]["trials"] if trial["control"]
    }
    assert found["rollback"]["written"] > 0


def test_the_rule_of_ones_choice_on_a_history(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(history)
    asked = ("rollback", "--restore", "math", "--rule", "two_fisher", "--budget", 0.05, *FEW[:2])
    found = run(*asked, "--json").json
    opened = rf.History.open(history)
    stage = opened.stage("HEAD")
    assert stage is not None
    assert found["stage"] == stage.name == "math-2"
    assert stage.config["rule"] == "two_fisher"
    assert opened.delta("writing", "HEAD").changed == found["written"] == round(0.05 * opened.delta("base").numel)
    again = run("rollback", "--restore", "math", *FEW[:2])
    assert again.code == 0, again.err
    assert "since stage math" in again.out  # where it was learnt, not where it was rolled back
    assert "spared writing" in again.out


def test_nothing_changed_since_is_nothing_to_do(history: Path) -> None:
    again = run("rollback", history, "--restore", "writing", "--protect", "math", *FEW[:2])
    assert again.code == 3
    assert "nothing to do" in again.err


def test_each_domain_comes_back_from_its_own_stage(stages: Path, history: Path, tmp_path: Path) -> None:
    opened = rf.History.open(history)
    for name, seed in (("code", 1), ("writing", 2)):
        opened.commit(nudged(stages / "writing", tmp_path / name, seed), domain=name, message=f"{name}, trained")
    found = run("rollback", history, "--restore", "math", "--restore", "code", *FEW[:2], "--json").json
    opened = rf.History.open(history)
    stage, parent = opened.stage("HEAD"), opened.stage("HEAD~1")
    assert stage is not None
    assert parent is not None
    assert (found["stage"], stage.config["rolled_back_since"]) == (stage.name, ["math", "code"])

    model, tokenizer = loaded(opened, "HEAD~1", tmp_path / "now")
    since = [opened.delta(name, parent) for name in ("math", "code")]
    toys = [Digits(*SKILLS[name]) for name in ("math", "code", "writing")]
    subspace = rf.conflict_subspace(
        model, since[0], toys[:2], toys[2:], since=since, samples=8, seed=0, tokenizer=tokenizer
    )
    rf.rollback(model, since[0], subspace, seed=0)
    assert not rf.diff(loaded(opened, "HEAD", tmp_path / "after")[0], model).changed


def test_what_lies_between_two_restored_stages_is_spared(
    stages: Path, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = rf.History.open(history)
    opened.commit(nudged(stages / "writing", tmp_path / "code", 1), domain="code", message="code, trained")
    opened.commit(nudged(tmp_path / "code", tmp_path / "writing", 2), domain="writing", message="writing, again")
    both = ("rollback", history, "--restore", "math", "--restore", "writing", *FEW[:2], "--dry-run")
    asked: list[list[str]] = []
    solve = rf.interference.conflict_subspace

    def noted(model: Any, delta: Any, restore: Any, protect: Any, **options: Any) -> Any:
        asked.append([one.name for one in protect])
        return solve(model, delta, restore, protect, **options)

    monkeypatch.setattr(rf.interference, "conflict_subspace", noted)
    run(*both)
    assert asked == [["code"]]


def test_a_score_by_the_domains_own_delta_on_a_history(history: Path, tmp_path: Path) -> None:
    opened = rf.History.open(history)
    opened.delta("math", "writing").invert().save(tmp_path / "own.delta.safetensors")  # exactly opposed
    asked = ("rollback", history, "--restore", "math", "--rule", "opposed", "--own", tmp_path / "own.delta.safetensors")
    ended = run(*asked, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["coordinates"] > 0


def test_damage_and_conflict_look_at_a_history_as_rollback_does(
    stages: Path, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = (stages / "writing", stages / "writing.delta.safetensors")
    with unchanged(history):
        hurt = run("damage", history, "--domain", "math", *FEW[:2], "--json").json["domains"]
        assert hurt == run("damage", *writing, "--domain", "math", *FEW[:2], "--json").json["domains"]
        asked = ("--restore", "math", "--rule", "two_fisher", "--parts", "set,geometry", *FEW[:2], "--json")
        monkeypatch.chdir(history)
        found = run("conflict", *asked).json
    beside = run("conflict", *writing, *asked, "--protect", "writing").json  # which is what was committed since
    for one in (found, beside):
        one["set"]["tensors"].sort(key=lambda tensor: tensor["name"])  # in the order of their own delta
    assert found == beside
    assert found["set"]["count"] > 0
    assert "'code'" in run("damage", history, "--domain", "code").fault
    assert run("damage", history, "--domain", "writing").code == 3  # nothing changed since


def test_each_domains_damage_is_since_its_own_stage(stages: Path, history: Path, tmp_path: Path) -> None:
    opened = rf.History.open(history)
    opened.commit(nudged(stages / "writing", tmp_path / "code", 1), domain="code", message="code, trained")
    opened.commit(nudged(tmp_path / "code", tmp_path / "now", 2), domain="writing", message="writing, again")
    both = run("damage", history, "--domain", "math", "--domain", "code", *FEW[:2], "--json").json["domains"]
    for name, stage in (("math", "math"), ("code", "code")):
        delta = tmp_path / f"{name}.delta.safetensors"
        rf.History.open(history).delta(stage, "HEAD").save(delta)
        alone = run("damage", tmp_path / "now", delta, "--domain", name, *FEW[:2], "--json").json["domains"]
        assert alone[name] == both[name]


def nudged(checkpoint: Path, out: Path, seed: int) -> Path:
    """The checkpoint with every weight a little off."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(checkpoint, out)  # with its tokenizer
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), quiet():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(out)
    return out


def loaded(history: rf.History, stage: str, folder: Path) -> tuple[Any, Any]:
    history.checkout(stage, folder)
    found = models.load(str(folder), "cpu")
    return found.model, found.tokenizer


def test_auto_on_a_checkpoint_and_its_delta(stages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("rollback", stages / "writing", stages / "writing.delta.safetensors", "--restore", "math")
    ended = run(*asked, "--protect", "writing", "--auto", *FEW, "-o", out)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 5
    assert ended.out.splitlines()[-1] == f"wrote {out}"
    assert differing(out, stages / "writing") > 0


def test_what_a_history_does_not_have_is_named(history: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        fault = run("rollback", history, "--restore", "code", "--auto").fault
        assert "'code'" in fault
        assert "math, writing" in fault
        fault = run("rollback", history, "--restore", "math", "--protect", "code", "--auto", *FEW).fault
        assert "code gained nothing" in fault
        for wrong in (("-o", tmp_path / "out"), ("--in-place",)):
            assert run("rollback", history, "--restore", "math", *wrong).code == 2
        assert run("rollback", history).code == 2
        assert run("rollback", history, "--restore", "math", "--auto", "--plot", tmp_path / "x.pdf").code == 1
    assert "history.json" in run("rollback", "-H", tmp_path, "--restore", "math").fault
