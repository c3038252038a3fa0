"""The program `rlforget`: its commands, their examples, and what becomes of an exception."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperGroup

from rlforget.cli import (
    circuits,
    conflict,
    damage,
    demo,
    doctor,
    experiment,
    export,
    history,
    output,
    recovery,
    together,
    training,
    transactions,
    weights,
)
from rlforget.errors import RlforgetError, missing_extra

INPUT_AT_FAULT = 1
INTERRUPTED = 130

Examples: TypeAlias = dict[Callable[..., None], str]

TASKS: dict[str, Examples] = {
    "Begin": {
        demo.demo: "rlforget demo --fast",
        doctor.doctor: "rlforget doctor",
    },
    "See and carry changes": {
        weights.diff: "rlforget diff base/ tuned/ -o math.delta.safetensors",
        weights.apply: "rlforget apply base/ math.delta.safetensors -o tuned/",
        weights.revert: "rlforget revert tuned/ math.delta.safetensors -o base/",
        export.export: "rlforget export math.delta.safetensors --base base/ --format lora --rank 16 -o adapter/",
    },
    "Keep every stage": {
        history.init: "rlforget init base/ -H history",
        history.commit: "rlforget commit tuned/ -H history --domain math -m 'GRPO on math'",
        history.log: "rlforget log --graph -H history",
        history.show: "rlforget show math -H history",
        history.checkout: "rlforget checkout math~1 -H history -o before/",
        history.blame: "rlforget blame -H history --top 5",
        history.tag: "rlforget tag best math -H history",
        history.gc: "rlforget gc -H history --dry-run",
    },
    "Be sure, and take it back": {
        transactions.verify: "rlforget verify now/ --repair",
        transactions.undo: "rlforget undo now/ --list",
    },
    "Find and undo what hurt": {
        damage.damage: "rlforget damage history/ --domain math --by layer",
        conflict.conflict: "rlforget conflict history/ --restore math --parts set,subspace",
        recovery.rollback: "rlforget rollback history/ --restore math --auto --plot front.svg",
        training.refresh: "rlforget refresh now/ --domain math --steps 10 -o fixed/",
    },
    "See which heads it broke": {
        circuits.find: "rlforget circuits find base/ --domain science --size 0.25 -o circuit.json",
        circuits.compare: "rlforget circuits compare base/ sft=sft/ grpo=grpo/ --domain science",
        circuits.restore: "rlforget circuits restore now/ --base base/ --circuit circuit.json -o fixed/",
    },
    "Train": {
        training.train: "rlforget train stage.yaml -o tuned/",
        training.sequence: "rlforget sequence sequence.yaml -o runs/sequence",
        demo.miniature: "rlforget miniature --seed 0 -o runs/miniature",
    },
    "Report": {
        experiment.experiment: "rlforget experiment configs/miniature.yaml -o runs/experiment --jobs 2",
        demo.report: "rlforget report runs/demo -o report.html",
    },
}
"""The commands by task, each with an example."""

GROUPS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {
    "circuits": (
        "The attention heads that a task needs, which of them a fine-tune broke, and their repair.",
        (circuits.find, circuits.compare, circuits.restore),
    ),
}
"""The commands that stand under another: what that is about, and which they are."""

FIRST_EXAMPLE = "rlforget demo --fast"
"""That of the program itself."""


def name_of(command: Callable[..., None]) -> str:
    """Return what a command is called: the name of its function, after that of its group."""
    group = next((f"{name} " for name, (_, members) in GROUPS.items() if command in members), "")
    return f"{group}{command.__name__}"


class _Program(TyperGroup):
    """The commands; a fault of the input becomes one line on stderr and an exit code, everything else a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with together.together():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            output.error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of our output has gone, which typer knows how to end
        except RlforgetError as fault:
            message = str(fault)
        except OSError as fault:
            message = f"{fault.filename or 'a file'}: {fault.strerror}" if fault.strerror else str(fault)
        except ModuleNotFoundError as fault:
            extra = doctor.extra_of(fault.name or "")
            if extra is None:
                raise
            message = str(missing_extra(doctor.distribution_of(str(fault.name)), extra))
        except (MemoryError, RuntimeError) as fault:
            if not _is_of_memory(fault):
                raise
            found = _first_line(fault)
            message = f"memory: expected room for what was asked; found {found}. Ask for fewer --samples, or a device."
        output.error(message)
        raise typer.Exit(INPUT_AT_FAULT)


def _is_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out: torch says so by a `RuntimeError` on a CPU, and by one of its own on a GPU."""
    said = str(fault).lower()
    return isinstance(fault, MemoryError) or "allocate memory" in said or "out of memory" in said


def _first_line(fault: BaseException) -> str:
    return (str(fault).splitlines() or ["none"])[0].rstrip(".")


app = typer.Typer(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Example: {FIRST_EXAMPLE}",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def rlforget(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Show what fine-tuning changed in a model's weights, which changes hurt older skills, and undo just those.

    Started with `torchrun`, the commands diff, apply, revert, verify and conflict share their work among processes.
    """
    if version:
        from rlforget import __version__

        output.line(f"rlforget {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        _show_map()
    else:
        together.begin(ctx.invoked_subcommand)


def _show_map() -> None:
    """Write the commands by task, with a line each."""
    output.line("rlforget: what fine-tuning changed in a model's weights, what of it hurt, and undoing just that.")
    for task, commands in TASKS.items():
        output.line(f"\n{task}")
        for command in commands:
            said = re.split("[:;]", (command.__doc__ or "").splitlines()[0])[0].removesuffix(".")
            output.line(f"  {name_of(command):<16} {said}")
    output.line("\n`rlforget COMMAND --help` shows a command's options and an example.")
    output.line("`rlforget --install-completion` teaches them to your shell (bash, zsh, fish).")


_groups: dict[str, typer.Typer] = {}
for _task, _commands in TASKS.items():
    for _command, _example in _commands.items():
        _group, _, _ = name_of(_command).rpartition(" ")
        if _group and _group not in _groups:
            _groups[_group] = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
            _about, _epilog = GROUPS[_group][0], f"Example: {_example}"
            app.add_typer(_groups[_group], name=_group, help=_about, epilog=_epilog, rich_help_panel=_task)
        _home, _panel = (_groups[_group], None) if _group else (app, _task)
        _home.command(rich_help_panel=_panel, epilog=f"Example: {_example}")(_command)
