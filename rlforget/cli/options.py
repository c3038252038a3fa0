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
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto: a GPU if there is one.")]
Evaluate = Annotated[bool, typer.Option("--evaluate", help="Measure the domains' rewards before and after.")]
