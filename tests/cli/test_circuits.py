"""`circuits find | compare | restore` on small checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlforget as rf
from rlforget.circuits import Circuit
from rlforget.report.circuits_file import read_circuits
from tests.cli.conftest import Checkpoints, differing, run, tensors, unchanged

SCIENCE = ("--domain", "science", "--samples", 8)


@pytest.fixture(scope="module")
def circuit(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The circuit of two heads that `random` draws in the base."""
    out = tmp_path_factory.mktemp("circuit") / "circuit.json"
    assert run("circuits", "find", checkpoints.base, *SCIENCE, "--method", "random", "--size", 2, "-o", out).code == 0
    return out


@pytest.mark.parametrize("method", ["eap-ig", "patching", "attribution"])
def test_find_saves_the_circuit_that_it_shows(method: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "circuit.json"
    asked = ("circuits", "find", checkpoints.base, *SCIENCE, "--method", method, "--size", "0.25", "-o", out)
    shown = run(*asked)
    assert shown.code == 0, shown.err
    found = Circuit.load(out)
    assert (found.method, found.size, tuple(found.scores.shape)) == (method, 2, (2, 4))
    lines = shown.out.splitlines()
    assert lines[0].split() == ["layer", *(word for head in range(4) for word in ("head", str(head)))]
    for layer, line in enumerate(lines[1:3]):
        for head, cell in enumerate(line.split()[1:]):
            assert cell.endswith("*") == bool(found.mask[layer, head])
            assert float(cell.rstrip("*")) == pytest.approx(float(found.scores[layer, head]), abs=5.1e-4)
    assert lines[-3].startswith("log_prob_difference: ")
    assert lines[-2].startswith("* 2 of 8 heads (25%)")
    assert lines[-1] == f"wrote {out}"
    assert max(map(len, lines[:-1])) <= 100
    again = run(*asked, "--force", "--json").json
    assert again["scores"] == found.to_dict()["scores"]
    assert (again["task"], again["out"]) == ("science", str(out))


def test_find_passes_its_options_on(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("circuits", "find", checkpoints.base, *SCIENCE, "--json")
    found = run(*asked, "--option", "steps=3", "--ablation", "mean", "--positions", "last", "--metric", "log_prob").json
    settings = found["settings"]
    assert (settings["steps"], settings["ablation"], settings["positions"]) == (3, "mean", "last")
    assert found["metric"]["name"] == "log_prob"
    assert found["out"] is None
    assert "unknown" in run(*asked, "--option", "unknown=3").fault
    assert "eap" in run(*asked, "--method", "magic").fault


def test_find_reads_pairs_from_a_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"clean": "M1+1=", "counterfactual": "M1+2=", "target": "2", "distractor": "3"}
    pairs.write_text("\n".join([json.dumps(row)] * 3), encoding="utf-8")
    asked = ("circuits", "find", checkpoints.base, "--task", pairs, "--json")
    found = run(*asked, "--samples", 2).json
    assert found["task"] == "pairs"
    assert found["settings"]["samples"] == 2
    row["counterfactual"] = "M1+22="  # 22 stands for the second 1
    pairs.write_text(json.dumps(row), encoding="utf-8")
    assert run(*asked).code == 0
    row["counterfactual"] = "M1+11="  # which of the two stands for it, nobody can say
    pairs.write_text(json.dumps(row), encoding="utf-8")
    assert "pair 0" in run(*asked).fault
    pairs.write_text(json.dumps(row | {"spans": [[[3, 4], [3, 5]]]}), encoding="utf-8")
    assert run(*asked).code == 0


def test_restore_puts_exactly_the_chosen_heads_back(checkpoints: Checkpoints, circuit: Path, tmp_path: Path) -> None:
    heads = Circuit.load(circuit).heads()
    written = ",".join(f"{layer}:{head}" for layer, head in heads)
    asked = ("circuits", "restore", checkpoints.tuned, "--base", checkpoints.base)
    for name, how in (("by-file", ("--circuit", circuit)), ("by-name", ("--heads", written))):
        shown = run(*asked, *how, "-o", tmp_path / name)
        assert shown.code == 0, shown.err
        assert shown.out.splitlines()[-1] == f"wrote {tmp_path / name}"
    assert differing(tmp_path / "by-file", tmp_path / "by-name") == 0
    model, _ = load(checkpoints.tuned)
    with rf.circuits.restore(model, checkpoints.base, heads) as undo:
        wanted = {name: value.clone() for name, value in model.state_dict().items()}
    now = tensors(tmp_path / "by-file")
    assert all(torch.equal(value, wanted[name]) for name, value in now.items())
    assert differing(tmp_path / "by-file", checkpoints.tuned) == undo.written > 0
    assert {path.name for path in (tmp_path / "by-file").iterdir()} == {p.name for p in checkpoints.tuned.iterdir()}


def load(folder: Path) -> Any:
    from rlforget.training.loading import load_named

    return load_named(str(folder))


def test_restore_tells_what_stayed_and_for_programs(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = (
        "circuits",
        "restore",
        checkpoints.tuned,
        "--base",
        checkpoints.base,
        "--heads",
        "1:0",
        "-o",
        tmp_path / "o",
    )
    assert "stayed: 1:0" in run(*asked, "--dry-run").out
    found = run(*asked, "--dry-run", "--json").json
    assert (found["heads"], found["left"], found["out"]) == ([[1, 0]], [[1, 0]], None)
    whole = run(*asked, "--shared", "any", "--json").json
    assert whole["left"] == []
    assert whole["written"] > found["written"]
    assert whole["written"] == differing(tmp_path / "o", checkpoints.tuned)


def test_restore_measures_beside_random_heads(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("circuits", "restore", checkpoints.tuned, "--base", checkpoints.base, "--heads", "0:0,0:1", "-o")
    measured = ("--domain", "math", "--domain", "qa", "--draws", 2, "--samples", 4, "--dry-run")
    with unchanged(tmp_path):
        found = run(*asked, tmp_path / "out", *measured, "--json").json["effects"]
        shown = run(*asked, tmp_path / "out", *measured).out.splitlines()
    assert set(found) == {"math", "qa"}
    assert len(found["math"]["random"]) == 2
    assert [line.split()[0] for line in shown[1:3]] == ["math", "qa"]


def test_a_base_that_is_the_model_is_nothing_to_do(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        ended = run(
            "circuits", "restore", checkpoints.base, "--base", checkpoints.base, "--heads", "0:0", "-o", tmp_path / "o"
        )
    assert ended.code == 3
    assert "nothing to do" in ended.err


def commands(checkpoints: Checkpoints, folder: Path) -> list[tuple[object, ...]]:
    return [
        ("circuits", "find", checkpoints.base, *SCIENCE, "-o", folder),
        ("circuits", "compare", checkpoints.base, f"sft={checkpoints.tuned}", *SCIENCE, "-o", folder),
        ("circuits", "restore", checkpoints.tuned, "--base", checkpoints.base, "--heads", "0:0", "-o", folder),
    ]


def test_nothing_is_overwritten_without_force_and_before_any_work(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlforget.cli.models.load", lambda *_: pytest.fail("the model was loaded"))
    there = tmp_path / "there"
    there.write_text("precious")
    with unchanged(tmp_path):
        for command in commands(checkpoints, there):
            assert "exist" in run(*command).fault
            assert "exist" in run(*command, "--dry-run").fault


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_dry_run_writes_nothing(flags: tuple[str, ...], checkpoints: Checkpoints, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        for command in commands(checkpoints, tmp_path / "out"):
            assert run(*command, "--dry-run", *flags).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("find", "m"),
        ("find", "m", "--domain", "math", "--task", "x.jsonl"),
        ("find", "m", "--domain", "math", "--size", "2.5"),
        ("find", "m", "--domain", "math", "--size", "many"),
        ("find", "m", "--domain", "math", "--option", "steps"),
        ("compare", "m", "--domain", "math"),
        ("compare", "m", "x", "--domain", "math"),
        ("compare", "m", "base=x", "--domain", "math"),
        ("compare", "m", "x=y"),
        ("restore", "m", "--base", "b", "-o", "x"),
        ("restore", "m", "--base", "b", "-o", "x", "--heads", "1"),
        ("restore", "m", "--base", "b", "-o", "x", "--heads", "1:2", "--circuit", "c.json"),
        ("restore", "m", "-o", "x", "--heads", "1:2"),
        ("fnid",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    ended = run("circuits", *arguments)
    assert ended.code == 2
    assert not ended.out
    assert "Usage: rlforget circuits" in ended.err


def test_what_cannot_be_used_is_named(checkpoints: Checkpoints, other: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "no.json").write_text("{}")
    out = ("-o", tmp_path / "out")
    tuned, base = checkpoints.tuned, ("--base", checkpoints.base)
    with unchanged(tmp_path):
        for command, said in (
            (("find", empty, *SCIENCE), str(empty)),
            (("find", checkpoints.base, "--domain", "nowhere"), "nowhere"),
            (("find", checkpoints.base, "--task", tmp_path / "no.jsonl"), "no.jsonl"),
            (("find", checkpoints.base, *SCIENCE, "--size", 9), "size"),
            (("compare", checkpoints.base, f"sft={empty}", *SCIENCE, *out), str(empty)),
            (("compare", checkpoints.base, f"sft={tuned}", *SCIENCE, "--size", "0", *out), "the base"),
            (("restore", tuned, *base, "--heads", "5:0", *out), "head 5:0"),
            (("restore", tuned, *base, "--circuit", tmp_path / "no.json", *out), "no.json"),
            (("restore", tuned, "--base", other, "--heads", "0:0", *out), "q_proj.weight"),
            (("restore", tuned, "--base", empty, "--heads", "0:0", *out), str(empty)),
        ):
            assert said in run("circuits", *command).fault


def test_compare_saves_what_the_report_shows(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "circuits.json"
    runs = (f"sft={checkpoints.tuned}", f"same={checkpoints.base}")
    asked = ("circuits", "compare", checkpoints.base, *runs, *SCIENCE, "--draws", 20, "-o", out)
    shown = run(*asked)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[-1] == f"wrote {out}"
    assert max(map(len, shown.out.splitlines()[:-1])) <= 100
    found = read_circuits(tmp_path)
    assert found is not None
    assert [one.name for one in found.maps] == ["base", "sft", "same"]
    assert (found.task, found.method) == ("science", "eap-ig")
    same = next(one for one in found.kept if one.name == "same")
    assert (same.retention, same.correlation) == (1.0, pytest.approx(1.0))
    assert found.maps[2].scores == found.base.scores
    alone = run("circuits", "find", checkpoints.tuned, *SCIENCE, "--size", "0.25", "--json").json
    assert found.maps[1].scores == alone["scores"]
    assert found.maps[1].mask == alone["mask"]
    again = run(*asked, "--force", "--json").json
    assert again["out"] == str(out)
    assert json.loads(out.read_text()) == {key: value for key, value in again.items() if key != "out"}


def test_compare_follows_checkpoints_with_their_reward(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("circuits", "compare", checkpoints.base, f"sft={checkpoints.tuned}", *SCIENCE, "--draws", 5)
    along = ("--checkpoint", f"sft={checkpoints.base}", "--completions", 4)
    found = run(*asked, *along, "--json").json["trajectories"]["sft"]["checkpoints"]
    assert [one["name"] for one in found] == ["base", str(checkpoints.base), "sft"]
    kept = [one["kept"]["measures"]["retention"]["value"] for one in found]
    assert kept[:2] == [1.0, 1.0]
    rewards = [one["reward"] for one in found]
    assert rewards[0] == rewards[1]
    assert all(0 <= reward <= 1 for reward in rewards)
    shown = run(*asked, *along).out
    assert "\nsft\ncheckpoint" in shown
    assert run(*asked, "--json").json["trajectories"] == {}
    lost = run(*asked, "--checkpoint", f"grpo={checkpoints.base}")
    assert (lost.code, "'grpo'" in lost.err) == (2, True)


def test_find_judges_the_circuit(checkpoints: Checkpoints) -> None:
    asked = ("circuits", "find", checkpoints.base, *SCIENCE, "--size", 8, "--judge")
    judged = run(*asked, "--json").json["judged"]
    assert (judged["normalised"], judged["ratio"], judged["size"]) == (1.0, 1.0, 8)  # all heads
    assert judged["curve"]["faithfulness"][-1] == 1.0
    assert judged["curve"]["cpr_interval"]["estimate"] == judged["curve"]["cpr"]
    assert any(line.startswith("faithfulness: 1.000 (1.000 to 1.000)") for line in run(*asked).out.splitlines())


def test_positions_may_be_spans(checkpoints: Checkpoints) -> None:
    asked = ("circuits", "find", checkpoints.base, *SCIENCE, "--json", "--positions")
    assert run(*asked, "-3:-1,0:2").json["settings"]["positions"] == [[-3, -1], [0, 2]]
    assert run(*asked, "first").code == 2


@pytest.mark.parametrize("value", ["abc", "2.5", "true"])
def test_an_option_of_another_kind_is_one_line(checkpoints: Checkpoints, value: str) -> None:
    said = run("circuits", "find", checkpoints.base, *SCIENCE, "--option", f"steps={value}").fault
    assert "a whole number" in said


def test_compare_looks_into_the_weights_of_vulnerable_heads(checkpoints: Checkpoints) -> None:
    runs = (f"sft={checkpoints.tuned}", f"same={checkpoints.base}")
    asked = ("circuits", "compare", checkpoints.base, *runs, *SCIENCE, "--draws", 5, "--completions", 4, "--weights")
    found = run(*asked, "--json").json
    (difference,) = found["comparison"]["differences"]
    least = next(one for one in difference["vulnerable"] if one["delta"] > 0)
    ((name, weights),) = found["weights"].items()
    assert "sft broke and same kept" in name
    assert [one["head"] for one in weights["heads"]] == least["heads"]
    assert all(one["total"]["changed"] > 0 and one["total"]["damage"] >= 0 for one in weights["heads"])
    shown = run(*asked).out
    assert f"vulnerable at {least['delta']:g}: {','.join(f'{i}:{j}' for i, j in least['heads'])}\n" in shown
    assert "damage" in shown
    assert run("circuits", "compare", checkpoints.base, runs[0], *SCIENCE, "--weights").code == 2


def test_replicates_of_the_base_rank_a_model(checkpoints: Checkpoints) -> None:
    asked = ("circuits", "compare", checkpoints.base, f"sft={checkpoints.tuned}", *SCIENCE, "--draws", 5)
    assert "p base" in run(*asked).out
    known = (*asked, "--replicate", checkpoints.base)
    assert "p seed" in run(*known).out
    found = run(*known, "--json").json["comparison"]
    assert found["settings"]["replicates"] == 1
    assert found["kept"]["sft"]["measures"]["retention"]["p_seeds"]["draws"] == 1


def test_a_name_given_twice_has_two_runs(checkpoints: Checkpoints) -> None:
    runs = (f"sft={checkpoints.tuned}", f"sft={checkpoints.base}")
    found = run("circuits", "compare", checkpoints.base, *runs, *SCIENCE, "--draws", 5, "--json").json["comparison"]
    assert list(found["kept"]) == ["sft/0", "sft/1"]
    assert found["kept"]["sft/1"]["measures"]["retention"]["value"] == 1.0
