"""The options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at the output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and write nothing.")]
Seed = Annotated[int, typer.Option(help="Seed of all draws.", min=0)]
Samples = Annotated[int, typer.Option(help="Completions sampled a domain.", min=1)]

Model = Annotated[str, typer.Argument(help="A checkpoint folder, or `miniature`.", metavar="MODEL")]
Delta = Annotated[Path, typer.Argument(help="A *.delta.safetensors file.", metavar="DELTA")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="The folder to create.", metavar="FOLDER")]
Base = Annotated[
    Path | None, typer.Option(help="A history's base, where it is elsewhere than the history says.", metavar="CKPT")
]
OutFolderOrNone = Annotated[
    Path | None, typer.Option("--out", "-o", help="The checkpoint to create.", metavar="FOLDER")
]
Rename = Annotated[
    list[str] | None, typer.Option(help="A tensor that is called otherwise after; may be repeated.", metavar="OLD=NEW")
]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Change the checkpoint itself; `rlforget undo` takes it back.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw where it changed and how far: an .svg or .png file.", metavar="FILE"),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto: a GPU if there is one.")]
Evaluate = Annotated[bool, typer.Option("--evaluate", help="Measure the domains' rewards before and after.")]


def misused(option: str, *, found: str, fix: str) -> typer.BadParameter:
    """Build the error for an option that lacks, is wrong, or goes with nothing that was given.

    Args:
        option: Its name, or an argument's.
        found: What was there.
        fix: What to do about it.
    """
    return typer.BadParameter(f"found {found}. {fix}", param_hint=option)


def out_or_in_place(out: Path | None, in_place: bool) -> None:
    """Hold that a command that writes a checkpoint is told where, once.

    Raises:
        BadParameter: It is not.
    """
    if (out is None) != in_place:
        raise misused(
            "--out", found="--in-place beside it" if in_place else "none", fix="Give one of --out and --in-place."
        )


def renamed(pairs: list[str]) -> dict[str, str]:
    """Return the new names that `--rename` gives, by the old ones.

    Raises:
        BadParameter: One is no OLD=NEW.
    """
    found = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise misused("--rename", found=repr(pair), fix="Write it as OLD=NEW.")
        found[old] = new
    return found
