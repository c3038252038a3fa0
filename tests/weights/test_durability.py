"""In which order the disk is told to keep things: what must outlive a loss of power comes before what relies on it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.torture.injection import TORN, Server
from tests.torture.jobs import digest


def traced(server: Server, job: str, *arguments: object, folder: Path) -> str:
    """The calls of a job that write, a line each, with paths from `folder` on."""
    outcome = server.run(job, *arguments, folder=folder)
    assert outcome.code == 0, outcome
    return "\n".join(line.replace(str(folder), "").replace("pwrite64", "pwrite") for line in outcome.trace) + "\n"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name, value in (("base", 0.0), ("tuned", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((9,), value)}, tmp_path / name / "model.safetensors")
    return tmp_path / "base", tmp_path / "tuned"


DRAFT = r"/\.rlforget/\.rlforget-\w+\.partial"
WEIGHTS = r"/model\.safetensors"


def test_a_write_in_place_has_its_record_on_the_disk_first(server: Server, pair: tuple[Path, Path]) -> None:
    base, tuned = pair
    calls = traced(server, "write", base, tuned, folder=base)
    order = (
        rf"fsync \n.*(write {DRAFT}\n)+fsync {DRAFT}\n"
        r"renameat2 /\.rlforget/000001\.unfinished\.safetensors\nfsync /\.rlforget\n.*"
        rf"(pwrite {WEIGHTS}\n)+fsync {WEIGHTS}\n"
        r"rename /\.rlforget/000001\.undo\.safetensors\nfsync /\.rlforget\n$"
    )
    assert re.search(order, calls, re.DOTALL), calls
    assert calls.index("renameat2") < calls.index("pwrite")
    calls = traced(server, "take_back", base, folder=base)
    order = (
        r"rename /\.rlforget/000001\.unfinished\.safetensors\nfsync /\.rlforget\n"
        rf"(pwrite {WEIGHTS}\n)+fsync {WEIGHTS}\nunlink /\.rlforget/000001"
    )
    assert re.search(order, calls), calls


def test_a_folder_is_on_the_disk_before_it_has_its_name(server: Server, tmp_path: Path) -> None:
    for _ in range(2):  # into a free place, then over what is there
        calls = traced(server, "write_folder", tmp_path / "x", "text", folder=tmp_path)
        draft = re.escape(re.search(r"mkdir (/\S+)", calls)[1])  # type: ignore[index]
        before, after = calls.split("renameat2 /x\n")
        for path in ("/model.safetensors", "/sub/note.txt", "/sub", ""):
            assert re.search(rf"^fsync {draft}{path}$", before, re.MULTILINE), calls
        assert before.rindex("write ") < before.index("fsync ")
        assert after.startswith("fsync \n")


def test_a_file_is_on_the_disk_before_it_has_its_name(server: Server, tmp_path: Path) -> None:
    calls = traced(server, "write_file", tmp_path / "x", "text", folder=tmp_path)
    draft = r"/\.rlforget-\w+\.partial"
    assert re.search(rf"write {draft}\nfsync {draft}\nrenameat2 /x\nfsync \n", calls), calls


def test_a_careless_writer_would_be_caught(server: Server, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """That a kill in the midst of a plain write is seen shows that the kills are where they are said to be."""
    base, tuned = pair
    states = {digest(base), digest(tuned)}
    found = set()
    calls = server.run("write_carelessly", shutil.copytree(base, tmp_path / "c"), tuned, folder=tmp_path / "c").calls
    for at in range(calls):
        place = shutil.copytree(base, tmp_path / str(at))
        server.run("write_carelessly", place, tuned, fault=TORN, at=at, folder=place)
        found.add(server.run("show", place).text.strip())
    assert found - states
