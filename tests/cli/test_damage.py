"""`damage` on checkpoint folders."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlforget as rf
from tests.cli.conftest import Checkpoints, run, unchanged

FEW = ("--samples", 4)


def test_damage_is_predicted_and_measured(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("damage", checkpoints.tuned, checkpoints.delta, "--domain", "math", "--domain", "qa", *FEW)
    plot = tmp_path / "damage.svg"
    found = run(*asked, "--by", "kind", "--plot", plot, "--json").json
    assert list(found["domains"]) == ["math", "qa"]
    assert found["plot"] == str(plot)
    assert plot.read_text().count("<svg") == 1
    for pair in found["domains"].values():
        predicted, measured = pair["predicted"], pair["measured"]
        assert predicted["count"] == measured["count"] == 4
        assert predicted["total"] == pytest.approx(predicted["first"] + predicted["second"])
        assert sum(part["row_sum"] for part in predicted["parts"].values()) == pytest.approx(predicted["second"])
        assert (measured["t"][0], measured["t"][-1], measured["rise"][0]) == (0.0, 1.0, 0.0)


def test_damage_as_a_table(checkpoints: Checkpoints) -> None:
    shown = run("damage", checkpoints.tuned, checkpoints.delta, "--domain", "math", "--by", "layer", *FEW)
    lines = shown.out.splitlines()
    assert lines[1].startswith("math")
    assert "KL" in lines[0]
    parts = lines[next(n for n, line in enumerate(lines) if line.startswith("math") and n > 1) + 1 :]
    assert [line.split()[0] for line in parts] == ["outside", "0", "1"]
    assert "±" in lines[1]


def test_damage_faults(checkpoints: Checkpoints, tmp_path: Path) -> None:
    asked = ("damage", checkpoints.tuned, checkpoints.delta, *FEW)
    with unchanged(tmp_path):
        assert ".svg" in run(*asked, "--domain", "math", "--plot", tmp_path / "plot.pdf").fault
        assert "no-such" in run(*asked, "--domain", "no-such").fault
        assert run(*asked).code == 2
    short = tmp_path / "short.jsonl"
    short.write_text('{"prompt": "a", "answer": "b", "split": "train"}\n')
    assert "1 in its split" in run(*asked, "--domain", short).fault
    assert issubclass(rf.errors.ShortDomainError, rf.RlforgetError)
    backward = ("damage", checkpoints.base, checkpoints.delta, "--domain", "math")
    assert "new bits" in run(*backward).fault


def test_damage_of_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    empty = tmp_path / "empty.delta.safetensors"
    assert run("diff", checkpoints.base, checkpoints.base, "-o", empty).code == 0
    assert run("damage", checkpoints.base, empty, "--domain", "math").code == 3
