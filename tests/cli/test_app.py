"""The program as a whole: its map, its help, its speed, and what becomes of exceptions."""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from rlforget.cli import doctor
from rlforget.cli.app import GROUPS, TASKS, app, name_of
from rlforget.errors import ConfigError, MissingExtraError
from tests.cli.conftest import run

EXAMPLES = {name_of(command): example for commands in TASKS.values() for command, example in commands.items()}
WRITERS = (
    *("diff", "apply", "revert", "rollback", "refresh", "train", "miniature", "demo", "report"),
    *("circuits find", "circuits compare", "circuits restore"),
)


def program(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlforget", *arguments]
    env = os.environ | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def plain(text: str) -> str:
    """Help without its boxes and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_alone_it_prints_the_commands_by_task() -> None:
    shown = run()
    assert shown.code == 0
    for task, commands in TASKS.items():
        assert task in shown.out
        assert all(re.search(rf"^  {name_of(command)} ", shown.out, re.MULTILINE) for command in commands)


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_holds_one_example_whose_options_exist(command: str) -> None:
    shown = plain(run(*command.split(), "--help").out)
    assert f"Example: {EXAMPLES[command]}" in shown
    assert shown.count("Example:") == 1
    options = shown.partition("Options")[2].partition("Example:")[0].split()
    assert {word for word in EXAMPLES[command].split() if word.startswith("-")} <= set(options)
    assert "--json" in options


def every_command() -> Iterator[tuple[tuple[str, ...], Any]]:
    """The program, its groups and its commands, as they are asked for and as they are."""
    from typer.main import get_command

    waiting: list[tuple[tuple[str, ...], Any]] = [((), get_command(app))]
    while waiting:
        words, command = waiting.pop()
        yield words, command
        waiting += [((*words, name), one) for name, one in getattr(command, "commands", {}).items()]


EVERY = {" ".join(words) or "rlforget": (words, command) for words, command in every_command()}


@pytest.mark.parametrize("name", EVERY)
def test_every_help_has_one_example_that_parses(name: str) -> None:
    """Of the program itself, its groups and commands: as the options are, and without running anything."""
    words, command = EVERY[name]
    shown = plain(run(*words, "--help").out)
    assert shown.count("Example: ") == 1
    assert command.epilog in shown
    program_name, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
    assert program_name == "rlforget"
    assert tuple(arguments[: len(words)]) == words
    _, within = EVERY["rlforget"]
    while isinstance(within, TyperGroup):
        within = within.commands[arguments.pop(0)]
    within.make_context(name, arguments)  # a fault of usage is raised


def test_a_wrong_example_would_be_found() -> None:
    _, diff = EVERY["diff"]
    for wrong in (["a"], ["a", "b", "--tpo", "3"], ["a", "b", "--top", "some"]):
        with pytest.raises(Exception, match=r"Missing parameter|No such option|valid integer"):
            diff.make_context("diff", wrong)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_completes(shell: str) -> None:
    # The shell's name as an argument, as it cannot be found out from a process that no shell started.
    given = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = program("--show-completion", shell, environment=given)
    assert script.returncode == 0
    assert f"complete_{shell}" in script.stdout
    asked = {"_RLFORGET_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "rlforget rollback --pro"}
    asked |= {"COMP_WORDS": "rlforget rollback --pro", "COMP_CWORD": "2", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "--protect" in program(environment=asked).stdout


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_lists_its_commands(group: str) -> None:
    shown = run(group)
    listed = plain(shown.out + shown.err)
    assert all(f" {command.__name__} " in listed for command in GROUPS[group][1])
    assert GROUPS[group][0] in plain(run("--help").out)


@pytest.mark.parametrize("command", [*WRITERS, "sequence"])
def test_what_writes_can_be_tried_first(command: str) -> None:
    options = plain(run(*command.split(), "--help").out).split()
    assert "--dry-run" in options
    assert ("--force" in options) == (command != "sequence")  # which goes on with a run, and never replaces one


def test_version() -> None:
    assert re.fullmatch(r"rlforget \d+\.\d+\.\d+\n", run("--version").out)


def test_help_loads_no_library() -> None:
    script = (
        "import sys; sys.argv = ['rlforget', 'rollback', '--help']\n"
        "from rlforget.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "transformers", "trl", "plotly", "numba", "triton"})


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_command_line_extra_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlforget.__main__ import main

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit:
        main()
    assert isinstance(exit.value.code, str)  # which Python prints on stderr, with exit code 1
    assert f"package {package}" in exit.value.code
    assert "pip install 'rlforget[cli]'" in exit.value.code
    assert "\n" not in exit.value.code


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ConfigError("key x", expected="a", found="b", fix="Mend\nit."), "key x: expected a; found b. Mend it."),
        (OSError(errno.ENOSPC, "No space left on device", "/full/file"), "/full/file: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), "/root: Permission denied"),
        (OSError(errno.EFBIG, "File too large"), "a file: File too large"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nmore"
            ),
            "you tried to allocate 8 bytes. Ask for fewer --samples",
        ),
        (OSError("a library's own words\nin two lines"), "a library's own words in two lines"),
        (ModuleNotFoundError("No module", name="plotly.graph_objects"), "pip install 'rlforget[report]'"),
        (ModuleNotFoundError("No module", name="reasoning_gym"), "pip install 'rlforget[reasoning-gym]'"),
    ],
)
def test_a_fault_of_the_input_is_one_line(fault: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnosis", _raiser(fault))
    assert said in run("doctor").fault


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnosis", _raiser(KeyboardInterrupt()))
    ended = run("doctor")
    assert (ended.code, ended.err) == (130, "rlforget: interrupted\n")


@pytest.mark.parametrize("fault", [ValueError("a bug"), ModuleNotFoundError("No module", name="rlforget.typo")])
def test_a_bug_stays_loud(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnosis", _raiser(fault))
    with pytest.raises(type(fault)):
        run("doctor")


@pytest.mark.parametrize(
    "arguments",
    [
        ("dif", "a", "b"),
        ("diff", "a"),
        ("diff", "a", "b", "--tpo", "3"),
        ("diff", "a", "b", "--top", "-1"),
        ("apply", "a", "d"),
        ("rollback", "a", "d", "-o", "x", "--budget", "2"),
        ("rollback", "a", "d", "-o", "x", "--rule", "dense", "--budget", "0.1"),
        ("rollback", "a", "d", "-o", "x", "--budget", "0.1"),  # by `subspace`, which needs domains
        ("rollback", "a", "d", "-o", "x", "--restore", "math", "--auto", "--rule", "fisher"),
        ("rollback", "a", "d", "-o", "x", "--restore", "math", "--auto"),
        ("rollback", "a", "d", "-o", "x", "--restore", "math", "--plot", "x.svg"),
        ("rollback", "a", "-o", "x", "--restore", "math"),
        ("rollback", "a", "d", "-H", "h", "--restore", "math"),
        ("rollback", "a", "d", "-o", "x", "--rule", "fisher"),
        ("conflict", "a", "d", "--rule", "two_fisher", "--restore", "math"),
        ("conflict", "a", "d", "--rule", "opposed"),
        ("refresh", "miniature", "-o", "x"),
        ("demo", "--seed", "one"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert not ended.out
    assert "Usage: rlforget" in ended.err


def test_every_usage_error_says_what_was_found_and_what_to_do() -> None:
    """All are made by `misused`, but for the one of a parser that knows no option's name."""
    makers = [
        (path.name, call.lineno)
        for path in Path(str(doctor.__file__)).parent.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "BadParameter"
    ]
    assert sorted(name for name, _ in makers) == ["options.py", "tuning.py"], makers
    shown = plain(run("rollback", "a", "d", "-o", "x", "--rule", "dense", "--budget", "0.1").err)
    assert "Invalid value for --budget: found the rule 'dense', which corrects every coordinate. Leave it out" in shown


def test_all_that_the_demo_lacks_is_named_before_it_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("trl", "plotly") else "99")
    fault = run("demo", "-o", tmp_path / "demo").fault
    assert "the extras train and report: expected the packages trl>=1.16, plotly>=6.0" in fault
    assert fault.endswith("pip install 'rlforget[train,report]'")
    assert not list(tmp_path.iterdir())
    doctor.need("cli")
    with pytest.raises(MissingExtraError, match="trl"):
        doctor.need("train")


def test_the_program_itself(tmp_path: Path) -> None:
    assert program().stdout.startswith("rlforget: what fine-tuning changed")
    wrong = program("diff", "--no-such-option")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    failed = program("diff", str(tmp_path), str(tmp_path))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1].startswith("rlforget: ")
    assert "Traceback" not in failed.stderr


def test_a_reader_that_leaves_is_no_fault() -> None:
    code = "import sys; from rlforget.__main__ import main; sys.argv = ['rlforget', 'diff', '--help']; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def _raiser(fault: BaseException) -> object:
    def fail() -> None:
        raise fault

    return fail
