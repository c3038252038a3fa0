"""`doctor`: what it finds here, and what it says of what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch

import rlforget
from rlforget.cli import doctor
from rlforget_kernels import OPERATORS
from tests.cli.conftest import run


def test_doctor_knows_this_machine() -> None:
    found = run("doctor", "--json").json
    assert found["versions"]["torch"] == torch.__version__
    assert [operator["name"] for operator in found["operators"]] == list(OPERATORS)
    assert {operator["cpu"] for operator in found["operators"]} == {"numba"}
    assert {("no device" in operator["cuda"]) for operator in found["operators"]} == {not torch.cuda.is_available()}
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    shown = run("doctor").out
    assert torch.__version__ in shown
    assert all(operator in shown for operator in OPERATORS)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(("system", "supported"), [("linux", True), ("darwin", True), ("win32", False)])
def test_doctor_says_where_it_runs(system: str, supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "triton" else real(name))
    found = doctor.diagnosis()
    assert found["platform"]["supported"] is supported
    assert ("triton>=3.4" in found["features"][0]["missing"]) is (system == "linux")  # which alone has one
    monkeypatch.setattr(doctor, "diagnosis", lambda: found)
    first = run("doctor").out.splitlines()[0]
    assert first.endswith("(runs on Linux; on macOS on CPUs alone; not on Windows)")
    assert (": not supported" in first) is not supported


def test_windows_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlforget.__main__ import main

    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="found Windows"):
        main()


@pytest.mark.parametrize("found", [None, "1.15.9", "0.16"])
def test_what_is_missing_or_too_old_comes_with_its_command(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package != "trl":
            return real(package)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    shown = run("doctor").out
    (line,) = (line for line in shown.splitlines() if "missing trl>=1.16" in line)
    assert line.startswith("models: ")
    assert line.endswith("pip install 'rlforget[train]'")


@pytest.mark.parametrize("found", ["1.16", "1.16.0", "1.20.1+cu130", "2.0.dev1"])
def test_new_enough_is_not_missing(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: found if package == "trl" else "99")
    assert not any(feature["missing"] for feature in doctor.diagnosis()["features"])


def test_requirements_are_those_of_the_package() -> None:
    tree = ast.parse((Path(rlforget.__file__).parents[1] / "setup.py").read_text(encoding="utf-8"))
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List)
    }
    (call,) = (node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    core = [requirement.partition(";")[0] for requirement in ast.literal_eval(arguments["install_requires"])]
    extras = arguments["extras_require"]
    assert isinstance(extras, ast.Dict)
    names = {k.value: v.id for k, v in zip(extras.keys, extras.values, strict=True) if isinstance(v, ast.Name)}
    assert list(doctor.REQUIRED) == core
    for feature in doctor.FEATURES:
        assert list(feature.requirements) == lists[names[feature.extra]]


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("yaml", "train"),
        ("trl.trainer", "train"),
        ("reasoning_gym", "reasoning-gym"),
        ("plotly", "report"),
        ("os", None),
    ],
)
def test_extra_of_a_module(module: str, extra: str | None) -> None:
    assert doctor.extra_of(module) == extra
