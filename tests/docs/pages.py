"""The blocks of a page, and how each kind of them runs.

The blocks of a page run in the order in which they are read, Python in one namespace, each from the page's own folder.
A block that has a title is the file of that name. One that cannot run is marked, in a comment on the line before it,
with the reason: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from rlforget.cli.app import app
from tests.cli.conftest import run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    flags=re.M | re.S,
)
_SMALL = {"samples": 4, "count": 8, "prompts": 8, "validation": 8, "evaluation": 8, "steps": 2, "every": 2}
_SIZE = re.compile(rf"\b({'|'.join(_SMALL)})([ =:]+)(\d+)\b")
_MINUTES = ("demo", "miniature", "experiment")
"""Commands that take minutes: they are not run, but held to exist with the options that a page gives them."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str
    reason: str

    @property
    def runs(self) -> bool:
        return not self.reason and (bool(self.title) or self.language in ("python", "sh"))


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    text = text_of(page)
    return [
        Block(
            page,
            text[: found.start("text")].count("\n"),
            found["language"],
            found["title"] or "",
            found["text"],
            found["reason"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def small(text: str) -> str:
    """The text with few samples, prompts and steps."""
    return _SIZE.sub(lambda found: f"{found[1]}{found[2]}{min(_SMALL[found[1]], int(found[3]))}", text)


def run_block(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(small(block.text), encoding="utf-8")
        if block.language == "python":
            compile(block.text, f"docs/{block.page}", "exec")
    elif block.language == "python":
        lines = "\n" * block.line + small(block.text)  # so that a traceback names the line of the page
        exec(compile(lines, f"docs/{block.page}", "exec"), names)
    else:
        for words in commands(block.text):
            run_command(words, monkeypatch)


def commands(text: str) -> Iterator[list[str]]:
    """Split a block into commands, each a list of words, as a shell does it."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            if words := shlex.split(command, comments=True):
                yield words


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, *arguments = words
    target = ""
    if ">" in arguments:
        *arguments, _, target = arguments
    if program == "cd":
        os.chdir(*arguments)
    elif program == "rlforget":
        options = check_options(arguments)
        if arguments[0] not in _MINUTES:
            few = ["--samples", 4] if "--samples" in options - {*arguments} else []
            done = run(*shlex.split(small(shlex.join(arguments))), *few)
            assert done.code in ((0, 3) if "--exit-code" in arguments else (0,)), (words, done)
            if target:
                Path(target).write_text(done.out, encoding="utf-8")
    elif program == "python" and arguments[0].startswith("examples/"):
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    else:
        check_command(program.removeprefix(".venv/bin/"), arguments)


def check_command(program: str, arguments: list[str]) -> None:
    """Hold that what a command names exists, where it takes too long, a device, or another machine to run it."""
    if program == "make":
        targets = re.findall(r"^([\w./ -]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert {word for word in arguments if "=" not in word} <= set(" ".join(targets).split()), arguments
    elif program in ("python", "torchrun") and "-m" in arguments:
        module = arguments[arguments.index("-m") + 1]
        assert importlib.util.find_spec(module), module
    elif program == "torchrun":
        assert any(Path(word).exists() for word in arguments if word.endswith(".py")), arguments
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.startswith(("tests", "benchmarks")))
    elif program == "pip":
        extras = set(re.findall(r'^        "([a-z-]+)":', (ROOT / "setup.py").read_text(), flags=re.M))
        assert {name for word in arguments for name in re.findall(r"\[([a-z-]+)\]", word)} <= extras
    else:
        assert program in (".", "mkdocs", "apt-get"), program


def check_options(arguments: list[str]) -> set[str]:
    """Hold that `rlforget` knows a verb and the options after it, and return all that the verb has."""
    command: Any = typer.main.get_command(app)
    verbs = list(arguments)
    while verbs and hasattr(command, "commands"):
        if verbs[0].startswith("-"):
            break
        assert verbs[0] in command.commands, arguments
        command = command.commands[verbs.pop(0)]
    known = {"--help", "-h"} | {one for option in command.params for one in (*option.opts, *option.secondary_opts)}
    for word in verbs:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in known, (word, arguments)
    return known
