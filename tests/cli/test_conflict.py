"""`conflict`: its parts, what it saves, and what it leaves out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import rlforget as rf
from rlforget.cli.conflict_parts import PARTS
from rlforget.delta.naming import kind_of, layer_of
from tests.cli.conftest import Checkpoints, run, unchanged

FEW = ("--samples", 6)


@pytest.fixture(scope="module")
def own(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An update that ends at the tuned model, exactly opposed to the change."""
    path = tmp_path_factory.mktemp("own") / "own.delta.safetensors"
    assert run("diff", checkpoints.tuned, checkpoints.base, "-o", path).code == 0
    return path


def asked(checkpoints: Checkpoints, *options: object) -> tuple[object, ...]:
    return ("conflict", checkpoints.tuned, checkpoints.delta, *options, *FEW)


BOTH = ("--restore", "writing", "--protect", "math")


def test_the_set_is_counted_by_layer_and_kind(checkpoints: Checkpoints) -> None:
    command = asked(checkpoints, *BOTH, "--parts", "set")
    whole = run(*command, "--json").json
    found = whole["set"]
    assert found["count"] == round(0.02 * whole["numel"])
    assert found["rule"] == "subspace"
    assert sum(tensor["picked"] for tensor in found["tensors"]) == found["count"]
    for layer, group in found["groups"].items():
        for kind, count in group.items():
            tensors = [t for t in found["tensors"] if kind_of(t["name"]) == kind and _layer(t["name"]) == layer]
            assert sum(tensor["picked"] for tensor in tensors) == count
    shown = run(*command).out.splitlines()
    assert shown[0].split()[0] == "layer"
    assert [line.split()[0] for line in shown[1:-1]] == [*found["groups"], "all"]
    assert shown[-2].split()[-1] == str(found["count"])


def _layer(name: str) -> str:
    layer = layer_of(name)
    return "outside" if layer is None else str(layer)


def test_every_part_is_shown_saved_and_drawn(checkpoints: Checkpoints, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    enough = ("--samples", 96)  # for a random model to be rewarded now and then
    both = ("--restore", "math", "--protect", "code")
    ended = run(*asked(checkpoints, *both, "--own", own, "--rule", "magnitude", "--out", out), *enough)
    assert ended.code == 0
    found = json.loads((out / "conflict.json").read_text())
    assert found["left_out"] == {}, found["left_out"]
    assert set(PARTS) <= set(found)
    assert {path.name for path in out.iterdir()} == {
        "conflict.json",
        *(f"{part}.{form}" for part in PARTS for form in ("csv", "svg")),
    }
    for part in PARTS:
        assert ElementTree.parse(out / f"{part}.svg").getroot().tag.endswith("svg")
        assert table(out / f"{part}.csv")
    delta = rf.DeltaFile(checkpoints.delta)
    assert found["changed"] == delta.changed
    (pair,) = found["routes"]["pairs"].values()
    assert pair["channels"]["population"] == 2 * 32
    assert 0 <= pair["channels"]["p"] <= 1
    assert found["synergy"]["total"]["cosine"] == pytest.approx(-1)
    assert found["synergy"]["on_route"]["cosine"] == pytest.approx(-1)
    assert len(table(out / "geometry.csv")) == len(found["geometry"]["matrices"]) == 15
    assert sum(float(row["share"]) for row in table(out / "kronecker.csv")) == pytest.approx(1)
    assert {row["curve"] for row in table(out / "subspace.csv")} == {"by_share", "by_eigenvalue", "random"}
    assert {row["module"] for row in table(out / "gradients.csv")} >= {"model.norm", "model.layers.0.mlp.up_proj"}
    for start in ("layer", "routes", "cosine of the two updates", "cosine of gradients", "directions", "damage,"):
        assert any(line.startswith(start) for line in ended.out.splitlines()), start
    assert ended.out.splitlines()[-1] == f"wrote {out}"


def table(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_lacks_its_options_is_left_out_unless_it_is_asked_for(checkpoints: Checkpoints) -> None:
    ended = run(*asked(checkpoints, "--rule", "random", "--json"))
    assert ended.code == 0
    assert {"set", "geometry"} == set(PARTS) & set(ended.json)
    assert set(ended.json["left_out"]) == set(PARTS) - {"set", "geometry"}
    for part in ended.json["left_out"]:
        refused = run(*asked(checkpoints, "--rule", "random", "--parts", part))
        assert refused.code == 2
        assert part in refused.err
    unknown = run(*asked(checkpoints, "--parts", "set,shoes"))
    assert unknown.code == 2
    assert "shoes" in unknown.err


def test_a_part_that_cannot_be_measured_says_why(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlforget.errors import LayoutError

    def refuse(case: object) -> None:
        raise LayoutError("the model", expected="channels", found="none", fix="Take another.")

    monkeypatch.setitem(PARTS, "geometry", refuse)
    ended = run(*asked(checkpoints, "--rule", "random"))
    assert ended.code == 0
    assert "left out geometry: the model: expected channels; found none. Take another." in ended.err
    assert "expected channels" in run(*asked(checkpoints, "--parts", "geometry")).fault


def test_an_output_that_is_there_is_replaced_only_by_force(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = asked(checkpoints, "--parts", "geometry", "--out", out)
    with unchanged(tmp_path):
        assert run(*command, "--dry-run").out.splitlines()[-1] == f"would write {out}"
    assert run(*command).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with unchanged(tmp_path):
        assert "exist" in run(*command).fault
    assert run(*command, "--force").code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the same arguments, the same bytes
