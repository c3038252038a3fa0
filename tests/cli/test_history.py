"""`init`, `commit`, `log`, `show`, `checkout`, `blame`, `tag`, `gc`, and `diff` and `verify` of stages."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlforget.delta import diff
from rlforget.history import History
from rlforget.training import EvaluationConfig, SequenceConfig, StageConfig, run_sequence
from rlforget.training.run_folder import RunFolder
from tests.cli.conftest import Checkpoints, differing, run, tensors, unchanged

TENSOR = "model.layers.0.mlp.up_proj.weight"
SAID = ("-m", "said")
STAGE_KEYS = {
    *("id", "name", "parent", "domain", "message", "time", "config", "metrics", "stats"),
    *("before", "after", "delta", "tags"),
}


@dataclass(frozen=True)
class Kept:
    """A history, and the folders of its base and stages by name."""

    folder: Path
    weights: dict[str, Path]

    @property
    def at(self) -> tuple[object, ...]:
        return "-H", self.folder


@pytest.fixture(scope="module")
def made(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base → code → math, and `again` on code, which is the base again; math is tagged `best`."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(checkpoints.base, root / "base")
    shutil.copytree(checkpoints.tuned, root / "code")
    shutil.copytree(checkpoints.tuned, root / "math")
    more = {
        name: weight + 0.01 * (torch.arange(weight.numel()).view(weight.shape) % 9 == 0)
        for name, weight in tensors(root / "math").items()
    }
    save_file(more, root / "math" / "model.safetensors", metadata={"format": "pt"})
    (root / "stage.json").write_text('{"steps": 60}')
    at = ("-H", root / "history")
    assert run("init", root / "base", *at).code == 0
    message = "GRPO on code\n\nwith \x1b[31mred"
    assert run("commit", root / "code", "-m", message, "--domain", "code", "--metric", "code=0.75", *at).code == 0
    math = ("--domain", "math", "--config", root / "stage.json")
    assert run("commit", root / "math", "-m", "math", *math, *at).code == 0
    assert run("commit", root / "base", "-m", "again", "--parent", "code", "--name", "again", *at).code == 0
    assert run("tag", "best", "math", *at).code == 0
    return root


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Kept:
    root = tmp_path / "kept"
    shutil.copytree(made, root)
    return Kept(root / "history", {name: root / name for name in ("base", "code", "math")})


def names(kept: Kept) -> list[str]:
    return [stage.name for stage in History.open(kept.folder).stages]


def test_the_log_as_people_read_it(kept: Kept) -> None:
    lines = run("log", *kept.at).out.splitlines()
    assert [line.split()[1] for line in lines] == ["again", "math", "code"]
    assert "(HEAD)" in lines[0]
    assert "(tag: best)" in lines[1]
    assert lines[2].endswith("GRPO on code")
    assert [line.split()[1] for line in run("log", "best~0", *kept.at).out.splitlines()] == ["math", "code"]
    assert run("log", "-n", 1, *kept.at).out.split() == lines[0].split()
    assert [one["name"] for one in run("log", "-n", 2, "--json", *kept.at).json["stages"]] == ["again", "math"]
    assert run("log", "-n", 0, *kept.at).out == ""


def test_the_graph(kept: Kept) -> None:
    lines = run("log", "--graph", *kept.at).out.splitlines()
    drawn = [" ".join(word for word in line.split() if not word.isalnum() or len(word) != 8) for line in lines]
    assert drawn == ["* again (HEAD)", "| * math (tag: best)", "|/", "* code GRPO on code", "* base ../base"]


def test_the_log_for_programs(kept: Kept) -> None:
    shown = run("log", "--json", *kept.at).json
    assert shown.keys() == {"base", "head", "stages"}
    assert shown["base"].keys() == {"path", "copied", "fingerprint", "files"}
    assert [stage["name"] for stage in shown["stages"]] == ["again", "math", "code"]
    assert shown["head"] == shown["stages"][0]["id"]
    assert all(stage.keys() == STAGE_KEYS for stage in shown["stages"])
    assert shown["stages"][1]["tags"] == ["best"]
    assert shown["stages"][1]["parent"] == shown["stages"][2]["id"]


def test_show(kept: Kept) -> None:
    text = run("show", "code", *kept.at).out
    assert "GRPO on code" in text
    assert "\x1b" not in text
    assert "code: 0.75" in text
    assert "again, math" in text.replace("math, again", "again, math")
    shown = run("show", "best", "--json", *kept.at).json
    assert shown.keys() == STAGE_KEYS | {"children", "head"}
    assert (shown["name"], shown["config"], shown["head"], shown["children"]) == ("math", {"steps": 60}, False, [])
    base = run("show", "base", "--json", *kept.at).json
    assert (base["id"], base["name"], base["path"]) == (None, "base", "../base")
    assert [child["name"] for child in base["children"]] == ["code"]
    assert "../base" in run("show", "HEAD~2", *kept.at).out


def test_show_draws_what_a_stage_changed(kept: Kept, tmp_path: Path) -> None:
    picture = tmp_path / "math.svg"
    assert f"wrote {picture}" in run("show", "math", "--plot", picture, *kept.at).out
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert run("show", "math", "--plot", picture, "--force", "--json", *kept.at).json["plot"] == str(picture)
    assert str(picture) in run("show", "math", "--plot", picture, *kept.at).fault
    assert run("show", "base", "--plot", tmp_path / "base.svg", *kept.at).code == 2


def test_checkout_is_exact(kept: Kept, tmp_path: Path) -> None:
    for name in ("base", "code", "math"):
        out = tmp_path / name
        assert f"wrote {out}" in run("checkout", name, "-o", out, *kept.at).out
        assert differing(out, kept.weights[name]) == 0
        assert {path.name for path in out.iterdir()} == {path.name for path in kept.weights[name].iterdir()}
    shown = run("checkout", "HEAD", "-o", tmp_path / "json", "--json", *kept.at).json
    assert (shown["stage"], shown["out"]) == ("again", str(tmp_path / "json"))


def test_diff_of_stages_and_paths(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = differing(kept.weights["code"], kept.weights["math"])
    assert run("diff", "code", "math", "--json", *kept.at).json["total"]["changed"] == wanted
    assert run("diff", "code", kept.weights["math"], "--json", *kept.at).json["total"]["changed"] == wanted
    monkeypatch.chdir(kept.folder / "deltas")  # inside a history, as inside a git repository
    assert run("diff", "best~", "best", "--json").json["total"]["changed"] == wanted
    assert run("diff", "again", "base", "--exit-code").code == 0
    assert "'nothing'" in run("diff", "nothing", "math").fault


def test_the_history_around_the_current_folder(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept.folder)
    assert len(run("log").out.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    assert "init" in run("log").fault
    assert "no history in this folder or above" in run("diff", "math", "code").fault


def test_blame(kept: Kept) -> None:
    changed = differing(kept.weights["base"], kept.weights["code"])
    shown = run("blame", "--stage", "again", "--json", "--top", 2, *kept.at).json
    assert shown.keys() == {"stages", "total", "kinds", "layers", "tensors", "top"}
    assert [stage["name"] for stage in shown["stages"]] == ["code", "again"]
    total = shown["total"]
    assert total["last"] == {"base": total["numel"] - changed, "code": 0, "again": changed}
    assert (total["changes"], total["returns"]) == (2 * changed, changed)
    assert len(shown["top"]) == 2
    assert "share last changed by" in run("blame", "--top", 2, *kept.at).out
    one = run("blame", TENSOR, "--stage", "again", "--json", "--top", 1, *kept.at).json
    assert one.keys() == {"tensor", "stages", "numel", "last", "changed", "changes", "returns", "top"}
    assert {k: one[k] for k in ("numel", "last", "changes")} == {
        k: shown["tensors"][TENSOR][k] for k in ("numel", "last", "changes")
    }
    (most,) = one["top"]
    assert (most["changes"], most["returns"], most["last"]) == (2, 1, "again")
    at = ",".join(map(str, most["at"]))
    assert f"{most['at'][0]}, {most['at'][1]}" in run("blame", TENSOR, "--stage", "again", "--top", 1, *kept.at).out
    told = run("blame", TENSOR, "--stage", "again", "--at", at, "--json", *kept.at).json["moments"]
    assert [moment["stage"] for moment in told] == ["base", "code", "again"]
    assert [(moment["changed"], moment["returned"]) for moment in told] == [(False, False), (True, False), (True, True)]
    assert told[0]["value"] == told[2]["value"] != told[1]["value"]
    assert "back to old bits" in run("blame", TENSOR, "--stage", "again", "--at", at, *kept.at).out


def test_tags(kept: Kept) -> None:
    assert run("tag", *kept.at).out.split()[::2] == ["best", "math"]
    assert run("tag", "last", *kept.at, "--json").json["tags"].keys() == {"best", "last"}
    assert "a tag of it" in run("tag", "best", "code", *kept.at).fault
    assert run("tag", "best", "code", "--force", *kept.at).code == 0
    assert run("show", "best", "--json", *kept.at).json["name"] == "code"
    assert run("tag", "-d", "best", *kept.at).code == 0
    assert "best" in run("tag", "-d", "best", *kept.at).fault


def test_gc(kept: Kept) -> None:
    assert run("gc", *kept.at).code == 3
    assert "would remove stage again" in run("gc", "--drop", "again", "--dry-run", *kept.at).out
    shown = run("gc", "--drop", "again", "--json", *kept.at).json
    assert [stage["name"] for stage in shown["stages"]] == ["again"]
    assert list(shown["files"]) == ["deltas/0003-again.delta.safetensors"]
    assert names(kept) == ["code", "math"]
    assert "tag" in run("gc", "--drop", "code", *kept.at).fault


def test_nothing_to_commit_is_3(kept: Kept) -> None:
    ended = run("commit", kept.weights["math"], *SAID, "--parent", "math", *kept.at)
    assert (ended.code, ended.out) == (3, "")
    assert "nothing to commit" in ended.err
    assert run("commit", kept.weights["math"], *SAID, "--parent", "math", "--dry-run", *kept.at).code == 3
    assert run("commit", kept.weights["math"], *SAID, "--parent", "math", "--allow-empty", *kept.at).code == 0
    assert names(kept)[-1] == "stage"


def test_what_is_committed_is_said(kept: Kept, checkpoints: Checkpoints) -> None:
    shown = run("commit", checkpoints.delta, *SAID, "--name", "by-delta", "--json", *kept.at).json
    (stage,) = shown["stages"]
    assert (stage["name"], shown["dry_run"]) == ("by-delta", False)
    assert stage.keys() == STAGE_KEYS - {"tags"}
    assert stage["after"] == run("show", "code", "--json", *kept.at).json["after"]
    said = run("commit", kept.weights["math"], "-m", "more", *kept.at).out.splitlines()
    assert said[0].startswith("[stage ")
    assert said[0].endswith("] more")
    assert said[-1] == f"wrote {kept.folder / 'deltas' / '0005-stage.delta.safetensors'}"


def test_dry_runs_write_nothing(kept: Kept, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        for command in (
            ("init", kept.weights["base"], "-H", tmp_path / "new"),
            ("init", kept.weights["base"], "--copy", *kept.at),
            ("commit", kept.weights["math"], *SAID, "--domain", "math", *kept.at),
            ("checkout", "math", "-o", tmp_path / "out", *kept.at),
            ("tag", "new", "math", *kept.at),
            ("tag", "-d", "best", *kept.at),
            ("gc", "--drop", "again", *kept.at),
        ):
            for flags in ((), ("--json",)):
                ended = run(*command, "--dry-run", *flags)
                assert ended.code == 0, ended
    planned = run("commit", kept.weights["math"], *SAID, "--domain", "math", "--dry-run", "--json", *kept.at)
    assert planned.json["names"] == ["math-2"]


def test_what_cannot_be_is_one_clear_line(kept: Kept, other: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        assert "its own base" in run("init", kept.weights["math"], *kept.at).fault
        assert "a stage of it" in run("commit", kept.weights["math"], *SAID, "--name", "code", *kept.at).fault
        assert "nowhere" in run("commit", tmp_path / "nowhere", *SAID, *kept.at).fault
        assert "'nothing'" in run("commit", kept.weights["math"], *SAID, "--parent", "nothing", *kept.at).fault
        fault = run("commit", kept.weights["math"], *SAID, "--config", "nowhere.yaml", *kept.at).fault
        assert "nowhere.yaml: expected a JSON or YAML file" in fault
        assert "'nothing'" in run("show", "nothing", *kept.at).fault
        assert "no parent" in run("checkout", "base~1", "-o", tmp_path / "out", *kept.at).fault
        assert "exist" in run("checkout", "math", "-o", kept.weights["code"], *kept.at).fault
        fault = run("blame", "nothing", "--stage", "math", *kept.at).fault
        assert all(part in fault for part in ("'nothing'", "'math'", "`rlforget blame --json`"))
        assert "index 500 on axis 1, of size 16" in run("blame", TENSOR, "--at", "3,500", *kept.at).fault
        assert "1 where it has 2 axes" in run("blame", TENSOR, "--at", "3", *kept.at).fault
        assert "init" in run("log", "-H", tmp_path).fault
        delta = kept.folder / "deltas" / "0002-math.delta.safetensors"
        assert "begins with" in run("commit", delta, *SAID, *kept.at).fault
    (kept.folder / "history.json").write_text("{")
    out = ("-o", tmp_path / "out")
    for command in (("log",), ("show",), ("tag", "x"), ("gc",), ("blame",), ("checkout", "math", *out)):
        assert "history.json" in run(*command, *kept.at).fault


@pytest.mark.parametrize(
    "arguments",
    [
        ("commit", "a", "--run", "b"),
        ("commit",),
        ("commit", "a"),
        ("commit", "a", "-m", " "),
        ("blame", "--at", "1"),
        ("tag", "--delete"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], kept: Kept) -> None:
    assert run(*arguments, *kept.at).code == 2
    for wrong in (("blame", TENSOR, "--at", "one"), ("commit", kept.weights["math"], *SAID, "--metric", "code")):
        assert run(*wrong, *kept.at).code == 2


def test_verify(kept: Kept) -> None:
    assert run("verify", kept.folder, "--json").json["sound"]
    delta = kept.folder / "deltas" / "0002-math.delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-1])
    ended = run("verify", kept.folder)
    assert ended.code == 1
    assert "math" in ended.out


def test_verify_of_the_history_around_the_current_folder(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept.folder / "deltas")
    assert "4 states: sound" in run("verify").out
    assert run("verify", "-H", kept.folder, "--json").json["checked"] == ["base", "code", "math", "again"]
    assert "found nothing there" in run("verify", "nope").fault
    assert "found nothing there" in run("verify", "nope", "--json").fault
    assert run("verify", kept.folder, *kept.at).code == 2
    monkeypatch.chdir(kept.weights["base"])
    assert "tensors" in run("verify").out


def test_diff_knows_what_was_renamed_between_stages(kept: Kept, tmp_path: Path) -> None:
    renamed = {f"new.{name}": tensor for name, tensor in tensors(kept.weights["code"]).items()}
    shutil.copytree(kept.weights["code"], tmp_path / "renamed")
    save_file(renamed, tmp_path / "renamed" / "model.safetensors", metadata={"format": "pt"})
    pairs = [part for name in renamed for part in ("--rename", f"{name.removeprefix('new.')}={name}")]
    named = ("--name", "renamed", "--parent", "code")
    assert run("commit", tmp_path / "renamed", *SAID, *named, *pairs, *kept.at).code == 0
    wanted = differing(kept.weights["code"], kept.weights["math"])
    found = run("diff", "math", "renamed", "--json", *kept.at).json
    assert (found["total"]["changed"], found["whole"]) == (wanted, {})
    assert len(found["renamed"]) == len(renamed)
    given = run("diff", "math", "renamed", *pairs, "--json", *kept.at).json
    assert given["renamed"] == found["renamed"]


def test_a_base_that_moved(kept: Kept, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.move(kept.weights["base"], moved)
    assert "run init" in run("checkout", "math", "-o", tmp_path / "out", *kept.at).fault
    assert run("checkout", "math", "-o", tmp_path / "out", "--base", moved, *kept.at).code == 0
    assert "run init" in run("diff", "code", "math", *kept.at).fault
    assert run("diff", "code", "math", "--base", moved, *kept.at).code == 0
    assert not run("verify", kept.folder, "--json").json["sound"]
    assert run("verify", kept.folder, "--base", moved, "--json").json["sound"]
    assert run("init", moved, "--copy", *kept.at, "--json").json["base"]["copied"]
    assert run("checkout", "math", "-o", tmp_path / "again", *kept.at).code == 0


def test_a_config_may_be_yaml(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text("steps: 60\nbetas: [0.9, 0.99]\n")
    assert run("commit", kept.weights["math"], *SAID, "--config", tmp_path / "stage.yaml", *kept.at).code == 0
    assert run("show", "--json", *kept.at).json["config"] == {"steps": 60, "betas": [0.9, 0.99]}
    for text in ("a: [", "- 1", "x: 2026-01-01"):
        (tmp_path / "stage.yaml").write_text(text)
        fault = run("commit", kept.weights["code"], *SAID, "--config", tmp_path / "stage.yaml", *kept.at).fault
        assert "expected" in fault


def test_the_stages_of_a_run(tmp_path: Path) -> None:
    stages = [
        StageConfig(domain=name, method="sft", steps=1, prompts=2, learning_rate=1e-2) for name in ("code", "math")
    ]
    config = SequenceConfig(model="miniature", stages=stages, evaluation=EvaluationConfig(domains=["math"], count=4))
    run_sequence(config, tmp_path / "run", progress=False)
    at = ("-H", tmp_path / "history")
    assert run("init", "miniature", *at).code == 0
    planned = run("commit", "--run", tmp_path / "run", "--dry-run", "--json", *at).json
    assert planned["names"] == ["code", "math"]
    shown = run("commit", "--run", tmp_path / "run", "--json", *at).json
    assert [stage["name"] for stage in shown["stages"]] == ["code", "math"]
    code, math = shown["stages"]
    assert (code["parent"], math["parent"]) == (None, code["id"])
    assert math["config"]["steps"] == 1
    assert "math" in math["metrics"]["scores"]
    assert run("commit", "--run", tmp_path / "run", *at).code == 3
    assert json.loads((tmp_path / "history" / "history.json").read_text())["base"]["copied"] is False
    assert run("verify", tmp_path / "history").code == 0
    assert "run of a sequence" in run("commit", "--run", tmp_path / "history", *at).fault


def test_a_run_that_ties_what_the_history_keeps_apart(tmp_path: Path) -> None:
    def tied(value: float) -> dict[str, torch.Tensor]:
        embed = torch.full((4, 2), value)
        return {"embed": embed, "head": embed, "norm": torch.ones(2)}

    (tmp_path / "base").mkdir()
    save_file({name: tensor.clone() for name, tensor in tied(0).items()}, tmp_path / "base" / "model.safetensors")
    folder = RunFolder(tmp_path / "run")
    with folder.opened(resume=False):
        folder.write(0, "base", {"parent": None}, None)
        folder.write(1, "code", {"parent": "base"}, diff(tied(0), tied(1)))
        folder.write(2, "math", {"parent": "code"}, diff(tied(1), tied(2)))
    at = ("-H", tmp_path / "history")
    assert run("init", tmp_path / "base", *at).code == 0
    History.open(tmp_path / "history").commit(tied(3), name="other")
    shown = run("commit", "--run", tmp_path / "run", "--json", *at).json
    code, math = shown["stages"]
    assert (code["parent"], math["parent"]) == (None, code["id"])
    assert run("commit", "--run", tmp_path / "run", *at).code == 3
