"""Every class of fault of the package, raised for real by bad input: what was expected, what was found, what to do."""

from __future__ import annotations

import ast
import builtins
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import rlforget
import rlforget as rf
import rlforget_kernels
from rlforget import domains, errors
from rlforget.circuits.task import Pair
from rlforget.delta.exporting import export_task_vector
from rlforget.domains import Example, miniature
from rlforget.domains.rewards.sandbox import run as confine
from rlforget.errors import RlforgetError
from rlforget.weights.locks import locked
from tests.recovery.digits import SEVENS, Digits, forgetful

Sample = Callable[[Path], object]

SMALL = {"w": torch.zeros(4)}


def not_a_checkpoint(folder: Path) -> None:
    rf.open_weights(folder)


def layout(folder: Path) -> None:
    rf.apply({"v": torch.zeros(4)}, changed())


def wrong_base(folder: Path) -> None:
    rf.apply({"w": torch.full((4,), 2.0)}, changed())


def delta_file(folder: Path) -> None:
    (folder / "cut.delta.safetensors").write_bytes(saved(folder).read_bytes()[:-1])
    rf.DeltaFile(folder / "cut.delta.safetensors")


def history(folder: Path) -> None:
    rf.History.open(folder)


def nothing_to_commit(folder: Path) -> None:
    kept = rf.History.init(folder / "history", base(folder))
    kept.commit(base(folder), message="nothing")


def coordinate(folder: Path) -> None:
    changed().restrict({"w": torch.tensor([9])})


def unknown_name(folder: Path) -> None:
    domains.get("maths")


def empty_domain(folder: Path) -> None:
    path = folder / "empty.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "split": "eval"}\n')
    domains.get(str(path)).examples(1, split="train")


def short_domain(folder: Path) -> None:
    path = folder / "short.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "split": "train"}\n')
    model, tokenizer = miniature.load()
    rf.fisher(model, str(path), rf.diff(moved(model), model), samples=9, tokenizer=tokenizer)


def domain_file(folder: Path) -> None:
    path = folder / "wrong.jsonl"
    path.write_text('{"prompt": 5}\n')
    domains.get(str(path))


def task(folder: Path) -> None:
    model, tokenizer = miniature.load()
    pair = Pair("M1+1=", "M1+11=", "2", "3")
    rf.circuits.find(model, rf.circuits.Task("pairs", [pair]), "random", tokenizer=tokenizer)


class Wrong(Digits):
    """A domain whose reward is no number in [0, 1]."""

    def reward(self, example: Example, completion: str) -> float:
        return 7.0


def reward(folder: Path) -> None:
    Wrong("M", "7").checked_reward(Example("M1234=", "777"), "777")


def sandbox(folder: Path) -> None:
    confine("1", ["1"], seconds=1, memory=1 << 80)


def non_finite(folder: Path) -> None:
    model, tokenizer = miniature.load()
    before = moved(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    rf.fisher(model, "math", rf.diff(before, model), samples=2, tokenizer=tokenizer)


def config(folder: Path) -> None:
    path = folder / "sequence.yaml"
    path.write_text("model: miniature\nstage: []\n")
    rf.training.load_config(path)


def parameter(folder: Path) -> None:
    model, tokenizer = miniature.load()
    delta = rf.diff(moved(model), model)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    rf.conflict_subspace(model, delta, ["math"], samples=2, tokenizer=tokenizer)


def report(folder: Path) -> None:
    from rlforget.report import write_report

    write_report(folder, folder / "report.html")


def output(folder: Path) -> None:
    (folder / "x.delta.safetensors").write_text("precious")
    changed().save(folder / "x.delta.safetensors")


def missing_extra(folder: Path) -> None:
    from rlforget.report.document import plotly

    with pytest.MonkeyPatch.context() as patch:
        for module in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
            patch.delitem(sys.modules, module)
        patch.setitem(sys.modules, "plotly", None)
        plotly()


def undefined_circuit(folder: Path) -> None:
    model, tokenizer = miniature.load()
    same = [Pair("M1+1=", "M1+1=", "2", "3")]
    rf.circuits.find(model, rf.circuits.Task("same", same), "random", tokenizer=tokenizer)


def zero_gradient(folder: Path) -> None:
    model, _ = miniature.load()
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.int64), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    rf.fisher(model, [{**batch, "labels": torch.full((1, 4), -100)}], rf.diff(moved(model), model))


def nothing_lost(folder: Path) -> None:
    model, tokenizer = miniature.load()
    search(model, tokenizer, restore=["math"], protect=["qa"])


def nothing_gained(folder: Path) -> None:
    scene = forgetful()
    search(scene.model, scene.tokenizer, delta=scene.delta, restore=[SEVENS], protect=[Flat("Q", "3")])


def search(model: Any, tokenizer: Any, *, delta: rf.Delta | None = None, **domains_: Any) -> None:
    few = {"samples": 4, "validation": 8, "evaluation": 8}
    rf.auto_rollback(model, tokenizer, delta or rf.diff(moved(model, 0.0), model), **domains_, **few)


class Flat(Digits):
    """A domain that rewards everything alike."""

    def reward(self, example: Example, completion: str) -> float:
        return 0.5


def export(folder: Path) -> None:
    export_task_vector(rf.diff({"n": torch.tensor([1])}, {"n": torch.tensor([2])}), folder / "vector")


def busy(folder: Path) -> None:
    with locked(folder):
        rf.apply(base(folder), changed(), in_place=True)


def unfinished_write(folder: Path) -> None:
    base(folder)
    unfinished(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # every write fails, as on a broken disk
    try:
        rf.open_weights(folder / "base.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def journal(folder: Path) -> None:
    rf.undo(base(folder))


def unfinished(folder: Path) -> None:
    """Write the base in place, in a process that is gone before it has ended."""
    saved(folder)
    script = (
        "import os, rlforget as rf, rlforget.weights.in_place as place\n"
        "place.put_forward = lambda *_: os._exit(1)\n"
        "delta = rf.Delta.load('small.delta.safetensors', base='base.safetensors')\n"
        "rf.apply('base.safetensors', delta, in_place=True)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=False)


def changed() -> rf.Delta:
    return rf.diff(SMALL, {"w": torch.tensor([0.0, 1.0, 0.0, 0.0])})


def saved(folder: Path) -> Path:
    path = folder / "small.delta.safetensors"
    changed().save(path)
    return path


def base(folder: Path) -> Path:
    path = folder / "base.safetensors"
    save_file(SMALL, path)
    return path


def moved(model: Any, by: float = 0.01) -> dict[str, torch.Tensor]:
    """The model's weights before a change of one tensor, and of one number in it if it is by nothing."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["model.layers.0.mlp.up_proj.weight"] += by
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-7
    return weights


SAMPLES: dict[str, Sample] = {
    "NotACheckpointError": not_a_checkpoint,
    "LayoutError": layout,
    "WrongBaseError": wrong_base,
    "DeltaFileError": delta_file,
    "ExportError": export,
    "HistoryError": history,
    "NothingToCommitError": nothing_to_commit,
    "CoordinateError": coordinate,
    "UnknownNameError": unknown_name,
    "EmptyDomainError": empty_domain,
    "ShortDomainError": short_domain,
    "DomainFileError": domain_file,
    "TaskError": task,
    "UndefinedCircuitError": undefined_circuit,
    "RewardError": reward,
    "SandboxError": sandbox,
    "NonFiniteError": non_finite,
    "ZeroGradientError": zero_gradient,
    "ParameterError": parameter,
    "ConfigError": config,
    "NothingLostError": nothing_lost,
    "NothingGainedError": nothing_gained,
    "ReportError": report,
    "OutputError": output,
    "BusyError": busy,
    "UnfinishedWriteError": unfinished_write,
    "JournalError": journal,
    "MissingExtraError": missing_extra,
}
"""By the class's name, what raises it. A new class needs a line here."""

ELSEWHERE = {"ForgettingWarning", "WorldError"}
"""A warning, and what takes two processes: tests/training/monitor/test_tracker.py, tests/training/test_together.py."""


@cache
def sources() -> dict[str, ast.Module]:
    """What is written in every module of the package and of its kernels, by path."""
    roots = (Path(str(package.__file__)).parent for package in (rlforget, rlforget_kernels))
    return {str(path): ast.parse(path.read_text(encoding="utf-8")) for root in roots for path in root.rglob("*.py")}


@cache
def classes() -> dict[str, str]:
    """The path of every class of exceptions, by name: of each class that stands on one, however many steps below."""
    places = {
        one.name: (path, {base.id for base in one.bases if isinstance(base, ast.Name)})
        for path, module in sources().items()
        for one in ast.walk(module)
        if isinstance(one, ast.ClassDef)
    }
    known = {name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)}
    found: dict[str, str] = {}
    while more := {n: path for n, (path, bases) in places.items() if n not in found and bases & {*known, *found}}:
        found |= more
    return found


def test_every_class_has_a_sample() -> None:
    public = {name for name, path in classes().items() if path == errors.__file__}
    assert public == {"RlforgetError", *SAMPLES, *ELSEWHERE}


def test_other_classes_are_caught_inside() -> None:
    """What does not stand in `errors` is an inner matter: somewhere it is caught by its name."""
    inner = {name for name, path in classes().items() if path != errors.__file__}
    caught = {
        node.id
        for module in sources().values()
        for where in ast.walk(module)
        if isinstance(where, ast.ExceptHandler | ast.withitem)
        for node in ast.walk(where.type if isinstance(where, ast.ExceptHandler) and where.type else where)
        if isinstance(node, ast.Name)
    }
    assert {"FrameError", "Malformed"} <= inner <= caught, inner - caught


@pytest.mark.parametrize("name", SAMPLES)
def test_a_fault_says_what_was_expected_what_was_found_and_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(RlforgetError) as raised:
        SAMPLES[name](tmp_path)
    fault = raised.value
    assert type(fault).__name__ == name
    assert str(fault) == f"{fault.what}: expected {fault.expected}; found {fault.found}. {fault.fix}"
    for part in (fault.what, fault.expected, fault.found):
        assert part.strip() == part != ""
        assert not part.endswith(".")
        assert "object at 0x" not in part
    assert fault.fix[0].isupper() or fault.fix.startswith("`")
    assert fault.fix.endswith((".", "'"))  # a sentence, or a command to copy
    assert len(str(fault)) < 500


def test_every_fix_is_a_sentence() -> None:
    """As they are written: every fault that the package may raise ends in what to do."""
    loose = []
    for path, module in sources().items():
        for call in ast.walk(module):
            if not isinstance(call, ast.Call):
                continue
            for keyword in call.keywords:
                text = _ends(keyword.value) if keyword.arg == "fix" else None
                if text is not None and not all(one.endswith((".", "'", "]")) or one == "" for one in text):
                    loose.append(f"{path}:{call.lineno}: {text}")
    assert not loose, "\n".join(loose)


def _ends(value: ast.expr) -> list[str] | None:
    """How a text ends, whichever way it goes; None where that is only known at run time."""
    if isinstance(value, ast.Constant):
        return [str(value.value)]
    if isinstance(value, ast.JoinedStr):
        return _ends(value.values[-1])
    if isinstance(value, ast.IfExp):
        return [*(_ends(value.body) or []), *(_ends(value.orelse) or [])]
    return None
