"""Every block of every page runs, and every command that a page names exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, blocks_of, check_command, check_options, run_block, text_of


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks_of(page))])
def test_blocks_run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    names: dict[str, Any] = {"__name__": "__main__"}
    modules = set(sys.modules)
    for block in blocks_of(page):
        monkeypatch.chdir(folder)
        if block.runs:
            run_block(block, names, monkeypatch)
    for name in set(sys.modules) - modules:  # the modules that the page wrote
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_no_fence_is_missed(page: str) -> None:
    assert len(re.findall(r"^\s*```", text_of(page), flags=re.M)) == 2 * len(blocks_of(page))


def test_few_blocks_do_not_run_and_each_says_why() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page) if block.language in ("python", "sh")]
    left_out = [block for block in blocks if not block.runs]
    assert len(left_out) <= len(blocks) // 20
    assert all(len(block.reason) > 10 for block in left_out)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    for command in re.findall(r"`((?:rlforget|make) [^`\n]+)`", text_of(page)):
        program, *arguments = shlex.split(command)
        if program == "make":
            check_command(program, arguments)
        elif arguments[0].islower():  # and not a word that stands for a verb
            check_options(arguments)


def test_files_in_the_text_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:rlforget|tests|examples|benchmarks|configs|docs)/[\w./-]+\.\w+)`", text_of(page)):
            assert (ROOT / path).exists() or "NAME" in path, (page, path)
    assert (DOCS / "index.md").exists()
