"""Inputs and outputs that cannot be used: one clear line, exit code 1, nothing half-written."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Checkpoints, run, unchanged

READ_ONLY = Path("/sys/rlforget")  # nobody may create a file there
FEW_BYTES = 4096
STAGE = "model: {model}\nstages: [{{domain: {domain}, method: sft, steps: 1, prompts: 2}}]\nevaluation: {{count: 2}}\n"


@pytest.fixture
def no_checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "no-checkpoint"
    folder.mkdir()
    (folder / "notes.txt").write_text("not a model")
    return folder


@pytest.fixture
def truncated(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    folder = tmp_path / "truncated"
    shutil.copytree(checkpoints.base, folder)
    os.truncate(folder / "model.safetensors", 1000)
    return folder


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    return folder


def stage_file(folder: Path, model: object, domain: str = "math") -> Path:
    path = folder / "stage.yaml"
    path.write_text(STAGE.format(model=model, domain=domain))
    return path


def writers(checkpoints: Checkpoints, folder: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes weights or deltas, without its output."""
    config = stage_file(folder, checkpoints.base)
    return {
        "diff": ("diff", checkpoints.base, checkpoints.tuned),
        "apply": ("apply", checkpoints.base, checkpoints.delta),
        "revert": ("revert", checkpoints.tuned, checkpoints.delta),
        "rollback": ("rollback", checkpoints.tuned, checkpoints.delta, "--rule", "random"),
        "refresh": ("refresh", checkpoints.tuned, "--domain", "math", "--method", "sft", "--steps", 1, "--prompts", 2),
        "train": ("train", config),
        "sequence": ("sequence", config),
        "circuits find": ("circuits", "find", checkpoints.base, *SCIENCE),
        "circuits compare": ("circuits", "compare", checkpoints.base, f"sft={checkpoints.tuned}", *SCIENCE),
        "circuits restore": ("circuits", "restore", checkpoints.tuned, "--base", checkpoints.base, "--heads", "0:0"),
    }


SCIENCE = ("--domain", "science", "--samples", 24)
WRITERS = (
    *("diff", "apply", "revert", "rollback", "refresh", "train", "sequence"),
    *("circuits find", "circuits compare", "circuits restore"),
)


@pytest.mark.parametrize("kind", ["no_checkpoint", "truncated", "pickled", "missing"])
def test_what_is_no_checkpoint_is_named(
    kind: str, checkpoints: Checkpoints, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bad = tmp_path / "missing" if kind == "missing" else request.getfixturevalue(kind)
    config = stage_file(tmp_path, bad)
    out = ("-o", tmp_path / "out")
    with unchanged(tmp_path):
        for command in (
            ("diff", bad, checkpoints.tuned),
            ("diff", checkpoints.base, bad, *out),
            ("apply", bad, checkpoints.delta, *out),
            ("revert", bad, checkpoints.delta, *out),
            ("conflict", bad, checkpoints.delta, "--rule", "random"),
            ("rollback", bad, checkpoints.delta, "--rule", "random", *out),
            ("refresh", bad, "--domain", "math", *out),
            ("refresh", bad, "--domain", "math", *out, "--dry-run"),
            ("train", config, *out),
        ):
            fault = run(*command).fault
            assert str(bad) in fault
            assert "expected" in fault


def test_weights_without_a_model_are_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(checkpoints.tuned / "model.safetensors", folder)
    asked = ("rollback", folder, checkpoints.delta, "-o", tmp_path / "out")
    with unchanged(tmp_path):
        fault = run(*asked, "--rule", "fisher", "--restore", "math").fault
    assert str(folder) in fault
    assert run(*asked, "--rule", "random").code == 0  # which asks no model


def test_another_architecture_is_named(checkpoints: Checkpoints, other: Path, tmp_path: Path) -> None:
    assert "resized tensor: model.embed_tokens.weight" in run("diff", checkpoints.base, other).out
    save_file({"strange": torch.zeros(1)}, tmp_path / "strange.safetensors")
    with unchanged(tmp_path):
        fault = run("diff", checkpoints.base, tmp_path / "strange.safetensors", "-o", tmp_path / "out").fault
    assert "model.embed_tokens.weight" in fault


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99, "checkpoint", "cut"])
def test_what_is_no_delta_is_named(content: bytes | str | None, checkpoints: Checkpoints, tmp_path: Path) -> None:
    delta, out = tmp_path / "bad.delta.safetensors", ("-o", tmp_path / "out")
    if content == "checkpoint":
        shutil.copy(checkpoints.base / "model.safetensors", delta)
    elif content == "cut":
        delta.write_bytes(checkpoints.delta.read_bytes()[:-1])
    elif isinstance(content, bytes):
        delta.write_bytes(content)
    with unchanged(tmp_path):
        for command in (
            ("apply", checkpoints.base, delta, *out),
            ("revert", checkpoints.tuned, delta, *out),
            ("conflict", checkpoints.tuned, delta, "--rule", "random"),
            ("rollback", checkpoints.tuned, delta, "--rule", "random", *out),
            ("rollback", checkpoints.tuned, checkpoints.delta, "--rule", "opposed", "--own", delta, *out),
        ):
            assert str(delta) in run(*command).fault


@pytest.mark.parametrize(
    ("domain", "said"),
    [("maths", "code, math, qa, writing, science"), ("no-such-file.jsonl", "no-such-file.jsonl")],
)
def test_an_unknown_domain_is_named(domain: str, said: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    config, out = stage_file(tmp_path, checkpoints.base, domain), ("-o", tmp_path / "out")
    with unchanged(tmp_path):
        for command in (
            ("conflict", checkpoints.tuned, checkpoints.delta, "--restore", domain),
            ("rollback", checkpoints.tuned, checkpoints.delta, "--restore", "math", "--protect", domain, *out),
            ("refresh", checkpoints.tuned, "--domain", domain, *out),
            ("train", config, *out),
            ("sequence", config, *out),
            ("sequence", config, *out, "--dry-run"),
        ):
            fault = run(*command).fault
            assert domain in fault
            assert said in fault


def test_an_unknown_score_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for command in ("conflict", "rollback"):
        out = ("-o", tmp_path / "out") if command == "rollback" else ()
        fault = run(command, checkpoints.tuned, checkpoints.delta, "--rule", "fishers", *out).fault
        assert "'fishers'" in fault
        assert "two_fisher" in fault


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    for command in ("train", "sequence"):
        assert "nowhere.yaml" in run(command, tmp_path / "nowhere.yaml", "-o", tmp_path / "out").fault


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_that_exists_is_kept(command: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("precious")
    arguments = writers(checkpoints, tmp_path)[command]
    with unchanged(tmp_path):
        for flags in ((), ("--dry-run",)):
            if command != "sequence" or not flags:
                assert str(out) in run(*arguments, "-o", out, *flags).fault
        if command != "sequence":
            assert str(out) in run(*arguments, "-o", out, "--force").fault


@pytest.mark.skipif(not READ_ONLY.parent.is_dir(), reason="there is no /sys")
@pytest.mark.parametrize("command", [*WRITERS, "demo", "miniature"])
def test_a_read_only_output_is_named(
    command: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlforget.domains.miniature.build.build", lambda *_: pytest.fail("it was trained"))
    arguments = writers(checkpoints, tmp_path).get(command, (command,))
    with unchanged(tmp_path):
        assert str(READ_ONLY) in run(*arguments, "-o", READ_ONLY).fault
    assert not READ_ONLY.exists()


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_leaves_nothing_behind(command: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    arguments, out = writers(checkpoints, tmp_path)[command], tmp_path / "outputs"
    (tmp_path / "first").mkdir()
    assert run(*arguments, "-o", tmp_path / "first" / "out").code == 0  # and compiles what it needs
    out.mkdir()
    with _small_files():
        assert "too large" in run(*arguments, "-o", out / "out").fault
    if command == "sequence":
        assert {path.name for path in (out / "out" / "stages").iterdir()} == {"00-base"}
        assert run(*arguments, "-o", out / "out").code == 0  # it goes on
    else:
        assert not list(out.iterdir())


def test_a_read_only_folder_seen_by_the_program(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    with unchanged(tmp_path):
        _fails(checkpoints, folder / "x.delta.safetensors", "Permission denied", _drop_privileges)


def test_a_full_disk_seen_by_the_program(checkpoints: Checkpoints, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FEW_BYTES, FEW_BYTES))

    with unchanged(tmp_path):
        _fails(checkpoints, tmp_path / "x.delta.safetensors", "File too large", limit)


def _fails(checkpoints: Checkpoints, out: Path, said: str, before: Callable[[], None]) -> None:
    """Run `diff -o` as a program of its own, prepared by `before`, and hold that it fails as it should."""
    command = [sys.executable, "-m", "rlforget", "diff", str(checkpoints.base), str(checkpoints.tuned), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=before)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    _, fault = done.stderr.splitlines()
    assert str(out) in fault
    assert said in fault


def _drop_privileges() -> None:
    """Give up what lets root write anywhere (CAP_DAC_OVERRIDE), for the program that is run next."""
    drop_from_bounding_set, override = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override, 0, 0, 0)


@contextmanager
def _small_files() -> Iterator[None]:
    """Let this process write no file beyond `FEW_BYTES`, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FEW_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
