"""The page of all commands, made from the program itself each time the site is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from mkdocs.structure.files import File
from typer.models import OptionInfo, ParameterInfo

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PAGE = "reference/command-line.md"

_INTRODUCTION = """\
# Command line

`rlforget` alone lists its commands by task; `rlforget COMMAND --help` says what this page says. Exit codes: 0 done; 1 the
input is at fault, with one line on stderr; 2 wrong usage; 3 nothing to do, or differences found where `--exit-code` asks;
130 interrupted.
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the page to those of the site."""
    files.append(File.generated(config, PAGE, content="\n".join([_INTRODUCTION, *page()])))
    return files


def page() -> Iterator[str]:
    """Write a section a task, and in it one a command."""
    from rlforget.cli.app import TASKS, name_of

    for task, commands in TASKS.items():
        yield f"## {task}\n"
        for function, example in commands.items():
            yield from _section(name_of(function), function, example)


def _section(name: str, function: Callable[..., None], example: str) -> Iterator[str]:
    anchor = name.replace(" ", "-")
    yield f"### rlforget {name} {{ #{anchor} }}\n\n{_text(inspect.getdoc(function) or '')}\n\n```sh\n{example}\n```\n"
    rows: dict[str, list[str]] = {"argument": [], "option": []}
    for parameter, kind, info in _parameters(function):
        described = _option(parameter, kind, info) if isinstance(info, OptionInfo) else _argument(parameter, info)
        head = "option" if isinstance(info, OptionInfo) else "argument"
        rows[head].append(f"| {described} | {_text(info.help or '')} | {_default(parameter, info)} |")
    for head, lines in rows.items():
        if lines:
            yield "\n".join([f"| {head} | what | default |\n| --- | --- | --- |", *lines, ""])


def _parameters(function: Callable[..., None]) -> Iterator[tuple[inspect.Parameter, Any, ParameterInfo]]:
    """Yield each parameter of a command with its type and what typer is told of it."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind, *notes = get_args(hints[parameter.name])
        for info in notes:
            if isinstance(info, ParameterInfo):
                yield parameter, kind, info


def _argument(parameter: inspect.Parameter, info: ParameterInfo) -> str:
    name = info.metavar or parameter.name.upper()
    return f"`{name}`" if parameter.default is parameter.empty else f"`[{name}]`"


def _option(parameter: inspect.Parameter, kind: Any, info: OptionInfo) -> str:
    given = (info.default, *(info.param_decls or ()))  # typer takes the first spelling for a default, as it stands first
    spellings = [one for one in given if isinstance(one, str)] or [f"--{parameter.name.replace('_', '-')}"]
    shown = ", ".join(f"`{one}`" for one in spellings)
    return shown if kind is bool else f"{shown} {info.metavar or _value(kind)}"


def _value(kind: Any) -> str:
    """Say what an option of a type takes: its choices, or what stands for one value."""
    inner = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        return "\\|".join(map(str, inner))
    return _value(inner[0]) if inner else {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def _default(parameter: inspect.Parameter, info: ParameterInfo) -> str:
    if isinstance(info.show_default, str):
        return _text(info.show_default)
    if parameter.default is parameter.empty:
        return "required"
    return "" if parameter.default in (None, False, "", ()) else f"`{parameter.default}`"


def _text(text: str) -> str:
    """Write a help text, in which typer marks what is bold or of a colour, on one line of Markdown."""
    words = " ".join(re.sub(r"\[/?[a-z ]+\]", "", text).split())
    return re.sub(r"(?<!`)(--[a-z][a-z-]+|\*\.[a-z.]+)(?!`)", r"`\1`", words).replace("|", "\\|")
