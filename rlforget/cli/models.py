"""The model that a command works on: found, loaded, evaluated, saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.cli import output

if TYPE_CHECKING:
    from rlforget.domains import Domain, Score


@dataclass(frozen=True)
class Loaded:
    """A live model, its tokenizer, and the checkpoint folder that both came from."""

    model: Any
    tokenizer: Any
    folder: Path


def load(model: str, device: str) -> Loaded:
    """Load the checkpoint folder `model`, or the miniature where that is its name.

    Raises:
        NotACheckpointError: There is no such checkpoint, or no causal language model in it.
        ConfigError: The device is not there.
    """
    from rlforget.training.loading import load_named
    from rlforget.weights import open_weights

    folder = folder_of(model)
    open_weights(folder)  # says what is wrong with the files, where transformers would only say that it is lost
    with output.step(f"loading {folder}"):
        live, tokenizer = load_named(str(folder), device=device)
    return Loaded(live, tokenizer, folder)


def folder_of(model: str) -> Path:
    """Return the checkpoint folder that `model` names: itself, or the shipped miniature's."""
    from rlforget.domains import miniature

    return miniature.path() if model == "miniature" else Path(model)


def rewards(loaded: Loaded, domains: Iterable[Domain], *, samples: int, seed: int) -> dict[str, Score]:
    """Mean sampled reward of each domain on evaluation prompts."""
    from rlforget.domains import evaluate

    found: dict[str, Score] = {}
    for domain in domains:
        with output.step(f"evaluating {domain.name}"):
            found[domain.name] = evaluate(loaded.model, loaded.tokenizer, domain, count=samples, seed=seed)
    return found


def save(model: Any, tokenizer: Any, out: Path, *, like: Path | None, force: bool) -> None:
    """Write a live model as a checkpoint folder, whole or not at all.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer.
        out: The folder to create.
        like: A checkpoint whose shards, names and other files are taken over; transformers chooses where none is given.
        force: Replace a checkpoint that is at `out`.

    Raises:
        OutputError: `out` exists or cannot be written.
    """
    from safetensors import SafetensorError

    from rlforget.training.quiet import quiet
    from rlforget.weights import save_checkpoint
    from rlforget.weights.atomic import new_folder

    if like is not None:
        save_checkpoint(out, model, like=like, force=force)
        return
    with new_folder(out, force=force) as draft, quiet():
        try:
            model.save_pretrained(draft)
        except SafetensorError as fault:  # which wraps the system's own, e.g. a full disk
            raise OSError(str(fault)) from fault
        tokenizer.save_pretrained(draft)


def rewards_json(before: dict[str, Score], after: dict[str, Score]) -> dict[str, Any]:
    """Return rewards before and after, for programs."""
    told = {"before": before, "after": after}
    return {when: {name: vars(one) for name, one in found.items()} for when, found in told.items()}


def show_rewards(before: dict[str, Score], after: dict[str, Score]) -> None:
    """Write a table of mean rewards before and after, with their standard errors over prompts."""
    rows = [
        (
            name,
            *(f"{one.mean:.3f} ± {one.stderr:.3f}" for one in (was, after[name])),
            f"{after[name].mean - was.mean:+.3f}",
        )
        for name, was in before.items()
    ]
    output.table(("domain", "reward before", "after", ""), rows)
