"""The options of `rlforget circuits`, and how their text is read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlforget.cli import output
from rlforget.cli.options import misused

if TYPE_CHECKING:
    from rlforget.circuits import Task

NOTHING_TO_DO = 3

Domain = Annotated[
    str | None,
    typer.Option(help="The domain whose counterfactuals are the task: a name or a .jsonl domain.", metavar="NAME"),
]
TaskFile = Annotated[
    Path | None,
    typer.Option("--task", help="A .jsonl file of pairs instead: clean, counterfactual, target, distractor, spans."),
]
Method = Annotated[str, typer.Option(help="eap-ig, patching, attribution, masking, or the control random.")]
Metric = Annotated[str, typer.Option(help="log_prob_difference, log_prob, or probability.")]
Ablation = Annotated[Literal["resample", "mean", "zero"], typer.Option(help="What takes the place of a head's output.")]
Positions = Annotated[
    str,
    typer.Option(help="Where it does: all, last, or spans of the prompt's tokens, e.g. 0:3,-2:-1.", metavar="WHERE"),
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Heads in the circuit: a share such as 0.25, or a count such as 12.",
        show_default="the method's choice, else all that matter",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the method, e.g. steps=10; may be repeated.", metavar="NAME=VALUE"),
]
Pairs = Annotated[int, typer.Option(help="Pairs of prompts.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Pairs a forward.", min=1)]


def named_models(pairs: Sequence[str], hint: str) -> dict[str, list[str]]:
    """Read NAME=MODEL, keeping the order.

    Raises:
        typer.BadParameter: A pair is none, or takes the base's name.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, model = pair.partition("=")
        if not name or not model:
            raise misused(hint, found=repr(pair), fix="Write it as NAME=MODEL.")
        if name == "base":
            raise misused(hint, found="the name 'base', which is the base's", fix="Take another.")
        found.setdefault(name, []).append(model)
    return found


def read_task(domain: str | None, file: Path | None, samples: int, seed: int) -> Task:
    """Build the task that the options name.

    Raises:
        typer.BadParameter: Neither or both are given.
    """
    from rlforget.circuits import Task as Pairs

    if (domain is None) == (file is None):
        raise misused(
            "--domain",
            found="none" if domain is None else "--task beside it",
            fix="Give a domain, or a file with --task.",
        )
    if domain is not None:
        return Pairs.from_domain(domain, count=samples, seed=seed)
    whole = Pairs.from_jsonl(file)  # type: ignore[arg-type]
    return Pairs(whole.name, whole.pairs[:samples])


def check_method(method: str) -> None:
    """Refuse a method that there is not, before a model is loaded."""
    from rlforget.circuits import METHODS
    from rlforget.errors import UnknownNameError

    if method not in list(METHODS):
        raise UnknownNameError(
            f"method {method!r}", expected=f"one of {', '.join(METHODS)}", found=repr(method), fix="Check the spelling."
        )


def read_size(text: str | None) -> int | float | None:
    """Read a size: a whole number is a count, one with a point a share.

    Raises:
        typer.BadParameter: It is neither.
    """
    if text is None:
        return None
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d*\.\d+|\d+\.", text) and float(text) <= 1:
        return float(text)
    raise misused("--size", found=repr(text), fix="Give a share such as 0.25, or a count such as 12.")


def read_positions(text: str) -> Any:
    """Read where heads are replaced: `all`, `last`, or spans.

    Raises:
        typer.BadParameter: It is none of these.
    """
    if text in ("all", "last"):
        return text
    spans = [re.fullmatch(r"\s*(-?\d+):(-?\d+)\s*", part) for part in text.split(",")]
    if not all(spans):
        raise misused("--positions", found=repr(text), fix="Write all, last, or START:STOP,START:STOP.")
    return [(int(span[1]), int(span[2])) for span in spans if span]


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE, the values as JSON where they are, else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise misused("--option", found=repr(pair), fix="Write it as NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def read_heads(heads: str | None, circuit: Path | None) -> list[tuple[int, int]]:
    """Return the heads that the options choose.

    Raises:
        typer.BadParameter: Neither or both are given, or the heads are not written as LAYER:HEAD.
        typer.Exit: The circuit has no head.
    """
    from rlforget.circuits import Circuit as File

    if (heads is None) == (circuit is None):
        raise misused(
            "--heads",
            found="none" if heads is None else "--circuit beside it",
            fix="Give heads, or a file with --circuit.",
        )
    if circuit is not None:
        chosen = File.load(circuit).heads()
        if not chosen:
            output.note(f"nothing to do: {circuit} has no head")
            raise typer.Exit(NOTHING_TO_DO)
        return chosen
    found = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in str(heads).split(",")]
    if not all(found):
        raise misused("--heads", found=repr(heads), fix="Write them as LAYER:HEAD,LAYER:HEAD.")
    return sorted({(int(one[1]), int(one[2])) for one in found if one})
