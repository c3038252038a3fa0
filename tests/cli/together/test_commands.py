"""Several processes share the work of a command, and leave and say what one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Checkpoints, run
from tests.cli.together.program import outcome, small_ranges

ROOT = Path(__file__).resolve().parents[3]
Tensors = dict[str, torch.Tensor]


def started(size: int, *program: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m"]
    return subprocess.Popen(
        [*command, *map(str, program)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = run.communicate(timeout=250)
    return subprocess.CompletedProcess(run.args, run.returncode, out, err)


def torchrun(size: int, *program: object) -> subprocess.CompletedProcess[str]:
    return ended(started(size, *program))


def bits(dtype: torch.dtype, *shape: int, seed: int) -> torch.Tensor:
    """Any bits at all, so NaNs of any payload, too."""
    numbers = torch.randint(0, 256, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(seed))
    return numbers.to(torch.uint8).view(dtype).reshape(shape)


def changed(tensor: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    moved = tensor.clone()
    flat = moved.view(-1).view(getattr(torch, f"int{8 * tensor.itemsize}"))
    flat[torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed)) < share] += 1
    return moved


def write_folder(folder: Path, shards: list[Tensors], *, tied: dict[str, str], config: str) -> Path:
    """Write a checkpoint of several files, with names of tied tensors noted as safetensors does."""
    folder.mkdir()
    home: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        here = {alias: kept for alias, kept in tied.items() if kept in tensors}
        save_file(tensors, folder / name, metadata={"format": "pt"} | here)
        home |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(config)
    return folder


@dataclass(frozen=True)
class Pair:
    """Two checkpoint folders of one model, whose change has all there is, and a history of the two."""

    before: Path
    after: Path
    history: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    first = {
        "embed": bits(torch.bfloat16, 90, 37, seed=0),
        "layers.0.up": bits(torch.float8_e4m3fn, 61, 50, seed=1),
        "layers.0.empty": torch.empty(0, 4),
        "layers.0.scale": bits(torch.float32, seed=2),
    }
    second = {
        "layers.1.up": bits(torch.float32, 7001, seed=3),
        "layers.1.mask": bits(torch.uint8, 900, seed=4),
        "layers.1.still": bits(torch.float16, 2500, seed=5),
        "resized": bits(torch.bfloat16, 50, 30, seed=6),
        "dropped": bits(torch.int64, 1500, seed=7),
    }
    tied = {"lm_head": "embed"}
    before = write_folder(root / "before", [first, second], tied=tied, config='{"vocab": 50}')
    after_first = first | {
        "embed": changed(first["embed"], 0.02, 8),
        "layers.0.up": changed(first["layers.0.up"], 0.9, 9),
    }
    after_second = second | {
        "layers.1.up": changed(second["layers.1.up"], 0.1, 10),
        "layers.1.mask": changed(second["layers.1.mask"], 0.01, 11),
        "resized": bits(torch.bfloat16, 55, 30, seed=12),
        "added": bits(torch.uint8, 1300, seed=13),
    }
    del after_second["dropped"]
    after = write_folder(root / "after", [after_first, after_second], tied=tied, config='{"vocab": 55}')
    history = root / "history"
    with small_ranges():
        assert run("init", before, "-H", history).code == 0
        assert run("commit", after, "-H", history, "-m", "first").code == 0
        assert run("commit", before, "-H", history, "-m", "second").code == 0
    return Pair(before, after, history)


def together(size: int, folder: Path, jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Run commands by several processes; return what each of them left, for every rank."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = torchrun(size, "tests.cli.together.program", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def hold(size: int, pair: Pair, conflicts: list[list[str]], folder: Path) -> None:
    """Run every command by one process and by several, and hold the one against the other."""
    alone, apart = folder / "alone", folder / "together"
    jobs: dict[Path, list[dict[str, Any]]] = {}
    broken = shutil.copytree(pair.history, folder / "broken")
    delta = sorted((broken / "deltas").iterdir())[0]
    delta.write_bytes(delta.read_bytes()[:-9] + b"\0" * 9)
    single = pair.before / "model-00002-of-00002.safetensors"
    for out in (alone, apart):
        out.mkdir()
        shutil.copytree(pair.before, out / "wrong")
        wrong = out / "wrong" / "model-00002-of-00002.safetensors"
        wrong.write_bytes(wrong.read_bytes()[:-4000] + bytes(4000))
        only = write_folder(out / "only", [{"w": bits(torch.float32, 5000, seed=20)}], tied={}, config="{}")
        tuned = write_folder(
            out / "tuned", [{"w": changed(bits(torch.float32, 5000, seed=20), 0.1, 21)}], tied={}, config="{}"
        )
        jobs[out] = [
            {"arguments": list(map(str, arguments))}
            for arguments in (
                ("diff", pair.before, pair.after, "-o", out / "d", "--json"),
                ("diff", pair.before, pair.after, "-o", out / "s", "--self-contained", "--plot", out / "d.svg"),
                ("diff", pair.after, pair.before, "--exit-code", "--top", "3"),
                ("diff", "base", "HEAD~1", "-H", pair.history, "--json"),
                ("diff", pair.before, pair.after, "-o", out / "d"),  # is there already
                ("apply", pair.before, out / "d", "-o", out / "applied"),
                ("revert", pair.after, out / "s", "-o", out / "reverted", "--json"),
                ("apply", out / "wrong", out / "d", "-o", out / "nothing"),
                ("apply", pair.before, out / "d", "--dry-run", "-o", out / "nothing"),
                ("diff", only, tuned, "-o", out / "o", "--json"),
                ("apply", only / "model-00001-of-00001.safetensors", out / "o", "-o", out / "file.safetensors"),
                ("apply", only, out / "o", "--in-place"),
                ("apply", only, out / "o", "--in-place"),  # is there already
                ("verify", only, "--json"),
                ("verify", pair.history, "--json"),
                ("verify", broken),
                ("verify", single),
                ("diff", pair.before),  # misused
            )
        ]
    expected = [outcome(**job) for job in jobs[alone]]
    assert [one["code"] for one in expected] == [0, 0, 3, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 2]
    more = [{"arguments": arguments} for arguments in conflicts]
    more += [{"arguments": ["diff", str(pair.before), str(pair.after), "-o", str(apart / "x")], "failing": size - 1}]
    first, *others = together(size, apart, jobs[apart] + more)
    for number, one in enumerate(expected):
        plain = {name: str(text).replace(str(alone), str(apart)) for name, text in one.items()}
        told = [{name: str(text) for name, text in rank[number].items()} for rank in (first, *others)]
        assert {rank["code"] for rank in told} == {plain["code"]}, (plain, told)
        assert told[0]["out"] == plain["out"]
        assert [rank["out"] for rank in told[1:]] == [""] * (size - 1)
        assert "".join(rank["err"] for rank in told) == plain["err"]
    for number, arguments in enumerate(conflicts, start=len(expected)):
        assert [(rank[number]["code"], rank[number]["out"]) for rank in others] == [(0, "")] * (size - 1)
        told, plain = json.loads(first[number]["out"]), json.loads(outcome(arguments)["out"])
        # These rows are streamed by several processes, and else held; all else is the same to the last digit.
        assert flat(told.pop("subspace", None)) == pytest.approx(flat(plain.pop("subspace", None)), rel=1e-4)
        assert told == plain
    assert {rank[-1]["code"] for rank in (first, *others)} == {1}
    said = "".join(rank[-1]["err"] for rank in (first, *others))
    assert said.count("rlforget: ") == 1
    assert "Input/output error" in said
    left = [
        {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
        for out in (alone, apart)
    ]
    for name in [name for name in left[1] if name in {"jobs.json", *(f"{rank}.json" for rank in range(size))}]:
        del left[1][name]
    assert left[0].keys() == left[1].keys()
    assert [name for name, content in left[0].items() if left[1][name] != content and ".rlforget" not in name] == []
    assert (apart / "applied" / "config.json").read_bytes() == (pair.after / "config.json").read_bytes()


def flat(found: Any) -> list[float]:
    """Return all numbers in a JSON object."""
    if isinstance(found, dict | list):
        return [number for part in (found.values() if isinstance(found, dict) else found) for number in flat(part)]
    return [] if found is None else [found]


@pytest.fixture(scope="module")
def conflicts(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Commands that look at a small model and the change that led to it, alone and in a history."""
    root = tmp_path_factory.mktemp("conflicts")
    models = [Path(shutil.copytree(model, root / model.name)) for model in (checkpoints.base, checkpoints.tuned)]
    for model in models:  # a padding row has no gradient where rows are held
        config = json.loads((model / "config.json").read_text()) | {"pad_token_id": None}
        (model / "config.json").write_text(json.dumps(config))
    base, tuned = map(str, models)
    for arguments in (
        ["init", base],
        ["commit", base, "-m", "writing", "--domain", "writing", "--allow-empty"],
        ["commit", tuned, "-m", "math", "--domain", "math"],
    ):
        with small_ranges():
            assert run(*arguments, "-H", root / "history").code == 0
    assert outcome(["diff", base, tuned, "-o", str(root / "d")])["code"] == 0
    few = ["--restore", "writing", "--samples", "8", "--json"]
    return [
        ["conflict", tuned, str(root / "d"), "--protect", "math", "--parts", "set,routes,geometry,subspace", *few],
        ["conflict", str(root / "history"), "--parts", "set,kronecker", *few],
    ]


def test_two_processes_leave_what_one_does(pair: Pair, conflicts: list[list[str]], tmp_path: Path) -> None:
    hold(2, pair, conflicts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_more_processes_leave_what_one_does(pair: Pair, conflicts: list[list[str]], tmp_path: Path, size: int) -> None:
    hold(size, pair, conflicts, tmp_path)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_other_commands_refuse(pair: Pair, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    waited: list[float] = []
    monkeypatch.setattr("rlforget.cli.together.time.sleep", waited.append)
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "rlforget log: expected one process; found 2" in run("log", "-H", pair.history).fault
    assert bool(waited) == (rank == "1")  # time for the first to say so for all


def test_what_torchrun_sets_is_asked_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "found no RANK" in run("diff", pair.before, pair.after).fault
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run("diff", pair.before, pair.after).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_a_file_of_several_frames_in_their_real_size(tmp_path: Path, size: int) -> None:
    before = {"a": bits(torch.bfloat16, 9_000_000, seed=0), "b": bits(torch.int8, 5_000_000, seed=1)}
    after = {"a": changed(before["a"], 0.01, 2), "b": changed(before["b"], 0.6, 3)}
    sides = [tmp_path / f"{name}.safetensors" for name in ("before", "after")]
    for path, tensors in zip(sides, (before, after), strict=True):
        save_file(tensors, path)
    done = torchrun(size, "rlforget", "diff", *sides, "-o", tmp_path / "together")
    assert done.returncode == 0, done.stderr
    alone = run("diff", *sides, "-o", tmp_path / "alone")
    assert done.stdout.replace("together", "alone") == alone.out
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4
