"""Cuts one command short at one point, and holds what is found afterwards against what may be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.torture.injection import COUNTED, Fault, Outcome, Server
from tests.torture.scenarios import Command, Scenario

HIDDEN_LEFTOVERS = (".partial", ".before-", ".unfinished.")


def write_inputs(folder: Path, server: Server) -> Path:
    """Write three checkpoints of three shards each, and the deltas from one to the next."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.{n}.{kind}": torch.randn(40, 24, generator=generator).to(dtype)
        for n in range(3)
        for kind, dtype in (("w", torch.bfloat16), ("v", torch.float32), ("q", torch.float8_e4m3fn))
    }
    for name in ("base", "tuned", "third"):
        _write_checkpoint(folder / name, tensors)
        tensors = {n: _nudged(tensor, generator) for n, tensor in tensors.items()}
    for name, before, after in (("one", "base", "tuned"), ("two", "tuned", "third")):
        words = ["diff", str(folder / before), str(folder / after), "-o", str(folder / f"{name}.delta.safetensors")]
        assert server.run("cli", *words).code == 0
    return folder


def _write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    weight_map = {name: f"model-{name.split('.')[1]}.safetensors" for name in tensors}
    for file in sorted(set(weight_map.values())):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "none"}')


def _nudged(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    changed = torch.rand(tensor.shape, generator=generator) < 0.1
    return torch.where(changed, tensor.float() + 1, tensor.float()).to(tensor.dtype)


@dataclass
class Tally:
    """What was found, by fault."""

    points: Counter[str] = field(default_factory=Counter)
    old: Counter[str] = field(default_factory=Counter)
    new: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        """At how many points a process was killed."""
        return self.points["killed"] + self.points["torn"]

    def add(self, fault: Fault, outcome: Outcome, *, new: bool) -> None:
        """Count a point."""
        self.points[fault.kind] += 1
        (self.new if new else self.old)[fault.kind] += 1
        self.calls[outcome.call] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {name: dict(sorted(counts.items())) for name, counts in vars(self).items()}


class Torture:
    """A scenario, with its folder as it is before and what may be found after.

    Args:
        scenario: What is cut short.
        server: Runs the commands.
        inputs: What `write_inputs` wrote.
        folder: An empty folder to work in.
    """

    def __init__(self, scenario: Scenario, server: Server, inputs: Path, folder: Path) -> None:
        self.scenario, self.server, self.inputs, self.folder = scenario, server, inputs, folder
        self.template = folder / "template"
        self.template.mkdir(parents=True)
        self._warm_up()
        for command in scenario.seed:
            self._succeed(command, self.template)
        clean = self.fresh()
        # Opening puts right what a half-done write left: that is the old state of such a folder.
        self.old = self.see(self.fresh("seen"))
        self.calls = self._succeed(scenario.command, clean).calls
        self.new = self.see(clean)
        self.final, self.listing = self._later(clean), _listing(clean)

    def point(self, fault: Fault, at: int, tally: Tally, *, process: bool = False) -> Outcome:
        """Let a fault come at a call that writes, and hold that the folder is as before or as after, whole."""
        work = self.fresh()
        outcome = self._in_process(work, fault, at) if process else self.run(self.scenario.command, work, fault, at)
        self._hold(fault, work, outcome, tally)
        return outcome

    def full(self, free: int, tally: Tally) -> None:
        """Run the command on a small filesystem with `free` bytes left on it, really; later there is room again."""
        work, filler = self.fresh(), self.folder / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(_free(self.folder) - free, 1))
        outcome = self.run(self.scenario.command, work)
        filler.unlink()
        self._hold(Fault("really full", 0), work, outcome, tally)

    def read_only(self, tally: Tally) -> None:
        """Run the command on a filesystem that cannot be written any more, really; later it can."""
        work = self.fresh()
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)
        outcome = self.run(self.scenario.command, work)
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)
        assert outcome.code == 1, outcome
        self._hold(Fault("really read-only", 0), work, outcome, tally)

    def _hold(self, fault: Fault, work: Path, outcome: Outcome, tally: Tally) -> None:
        assert outcome.code in (0, 1, -9), outcome
        seen = self.see(work)
        assert seen in (self.old, self.new), (outcome, seen)
        if outcome.code == 0:
            assert seen == self.new, outcome
        if outcome.code == 1:
            assert "Traceback" not in outcome.text, outcome
            assert any(word in outcome.text for word in ("rlforget: ", "Error: ", ": not sound")), outcome
        assert self._later(work) == self.final, outcome
        assert _listing(work) == self.listing, outcome
        tally.add(fault, outcome, new=seen == self.new)

    def run(self, command: Command, work: Path, fault: Fault = COUNTED, at: int = 0, *, fork: bool = True) -> Outcome:
        """Run a command in a process of its own, with a fault."""
        first, *words = self._words(command, work)
        job, arguments = (first[1:], words) if first.startswith("@") else ("cli", [first, *words])
        return self.server.run(job, *arguments, fault=fault, at=at, folder=work, fork=fork)

    def _warm_up(self) -> None:
        """Run everything once in the server itself."""
        work = self.folder / "warm"
        work.mkdir()
        for command in (*self.scenario.seed, self.scenario.command, *(command for command, _ in self.scenario.later)):
            self.run(command, work, fork=False)
        self.server.run("see", work, fork=False)

    def see(self, work: Path) -> Any:
        """Return what the next command finds."""
        outcome = self.server.run("see", work)
        assert outcome.code == 0, outcome
        return _seen(outcome)

    def _in_process(self, work: Path, fault: Fault, at: int) -> Outcome:
        """Run a command as a user does, from a new interpreter."""
        words = self._words(self.scenario.command, work)
        settings = {"LD_PRELOAD": str(self.server.library), "INJECT": f"{fault.mode} {at} {fault.error} {work}"}
        done = subprocess.run(
            [sys.executable, "-m", "rlforget", *words],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, 0, "in a process of its own", done.stderr)

    def _later(self, work: Path) -> Any:
        """Run what must work afterwards, and return what is there then."""
        commands = [(self._words(command, work), sorted(codes)) for command, codes in self.scenario.later]
        outcome = self.server.run("several", work, commands)
        assert outcome.code == 0, outcome
        return _seen(outcome)

    def _words(self, command: Command, work: Path) -> list[str]:
        return [word.format(work=work, inputs=self.inputs) for word in command]

    def _succeed(self, command: Command, work: Path) -> Outcome:
        outcome = self.run(command, work)
        assert outcome.code == 0, (command, outcome)
        return outcome

    def fresh(self, name: str = "work") -> Path:
        work = self.folder / name
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(self.template, work, symlinks=True))


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


def _seen(outcome: Outcome) -> Any:
    return json.loads(outcome.text.rpartition("SEEN ")[2])


def _listing(work: Path) -> list[str]:
    """Return what lies in a folder, hidden files too; nothing may be left over."""
    found = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
    assert not [name for name in found if any(mark in name for mark in HIDDEN_LEFTOVERS)], found
    return found
