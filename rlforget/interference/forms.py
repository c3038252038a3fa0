"""From what a caller gives to rows in a sample space: held where they fit, streamed where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from rlforget.errors import ConfigError
from rlforget.interference.completions import Batches, check_same, collect
from rlforget.interference.gradient_stack import GradientStack
from rlforget.interference.linearisation import Linearisation, Sources
from rlforget.interference.point import Frozen, check_at_after, measured_parameters
from rlforget.interference.rows import KINDS, Kind, total
from rlforget.interference.sample_gradients import Column, columns_for, width
from rlforget.interference.streamed import StreamedGradients
from rlforget.weights import open_weights
from rlforget.weights.ranks import world

if TYPE_CHECKING:
    from rlforget.delta import Delta

Form = Literal["auto", "plain", "streamed"]

PLAIN_BYTES = 4 << 30  # of gradients, up to which they are held


def sources_of(
    model: nn.Module,
    delta: Delta,
    restore: Sequence[Batches],
    protect: Sequence[Batches],
    *,
    samples: int,
    rows: Kind,
    row_budget: int | None,
    restore_weights: Sequence[float] | None = None,
    protect_weights: Sequence[float] | None = None,
    frozen: Frozen = "error",
    seed: int,
    tokenizer: Any,
    shards: bool = False,
) -> Sources:
    """Check the model against the delta, and collect each domain's prompts. Nothing is run.

    With `shards` the model may be spread over ranks.

    Raises:
        ConfigError: An argument out of range.
        EmptyDomainError: A domain without samples.
        LayoutError: The delta is of another architecture.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        ShortDomainError: A domain has fewer prompts than `samples`.
        WrongBaseError: The model is not at the delta's after bits.
    """
    parameters, _ = measured_parameters(model, delta, frozen=frozen, shards=shards)
    check_at_after(open_weights(model, shards=shards), delta)
    restored, protected = (
        [collect(model, one, samples=samples, seed=seed, tokenizer=tokenizer) for one in several]
        for several in (restore, protect)
    )
    if delta.sharding is not None:
        several = [batch for domain in (*restored, *protected) for batch in domain]
        check_same(several, samples, rows, row_budget, restore_weights, protect_weights, frozen, seed)
    shares = [
        _shares(name, weights, len(several))
        for name, weights, several in (
            ("restore_weights", restore_weights, restored),
            ("protect_weights", protect_weights, protected),
        )
    ]
    return Sources(
        model,
        columns_for(parameters, sharding=delta.sharding),
        restored,
        protected,
        kind=rows,
        budget=row_budget,
        restore_shares=shares[0],
        protect_shares=shares[1],
        seed=seed,
        tokenizer=tokenizer,
        sharding=delta.sharding,
    )


def _shares(name: str, weights: Sequence[float] | None, domains: int) -> list[float]:
    shares = [1.0] * domains if weights is None or not domains else list(weights)
    holds = len(shares) == domains and all(0.0 < share < float("inf") for share in shares)
    refuse_unless((name, holds, f"a positive number for each of {domains} domains", weights))
    return shares


def space_of(
    at: Linearisation, form: Form, *, block: int, into: GradientStack | StreamedGradients | None = None
) -> GradientStack | StreamedGradients:
    """Take rows in the form asked for. "auto" is plain while they fit, on one process: ranks share the streamed form.

    Where the model itself is spread over ranks, each holds its columns of the plain form, whatever their size.

    Args:
        at: The rows and their points.
        form: "plain", "streamed" or "auto".
        block: Rows that the streamed form holds at once.
        into: A stack of an earlier pass, to be overwritten.
    """
    if at.sources.sharding is not None:
        refuse_unless(("form", form != "streamed", '"plain" or "auto", for a model that is spread over ranks', form))
        return GradientStack.of(at, into=into.rows if isinstance(into, GradientStack) else None)
    fits = world() == 1 and 4 * total(at.blocks) * width(at.sources.columns) <= PLAIN_BYTES
    if form == "streamed" or (form == "auto" and not fits):
        return StreamedGradients(at, block=block)
    return GradientStack.of(at, into=into.rows if isinstance(into, GradientStack) else None)


def flat(delta: Delta, columns: Mapping[str, Column]) -> Tensor:
    """Return δ over the columns, float32 [width], 0 where nothing changed, or where the delta has no such tensor."""
    values = torch.zeros(width(columns))
    for name, column in columns.items():
        if name in delta:
            values[column.span][delta.places(name)] = delta[name].values
    return values


def check_settings(restore: Sequence[Batches], *, samples: int, rows: str, row_budget: int | None, lam: float | str,
                   form: str, block: int) -> None:  # fmt: skip
    """Refuse what no form can do.

    Raises:
        ConfigError: An argument out of range.
    """
    several = isinstance(restore, Sequence) and not isinstance(restore, str) and len(restore) > 0
    refuse_unless(
        ("restore", several, "a list of one domain or more", type(restore).__name__),
        ("samples", samples >= 1, "at least 1", samples),
        ("rows", rows in KINDS, f"one of {', '.join(KINDS)}", repr(rows)),
        ("row_budget", row_budget is None or row_budget >= 1, "at least 1, or None for all", row_budget),
        ("lam", lam == "auto" if isinstance(lam, str) else lam >= 0, 'a number not below 0, or "auto"', repr(lam)),
        ("form", form in get_args(Form), f"one of {', '.join(get_args(Form))}", repr(form)),
        ("block", block >= 1, "at least 1", block),
    )


def refuse_unless(*rules: tuple[str, bool, str, object]) -> None:
    """Hold each rule: an argument's name, whether it holds, what was expected and what was found.

    Raises:
        ConfigError: One does not.
    """
    for name, holds, expected, found in rules:
        if not holds:
            raise ConfigError(name, expected=expected, found=str(found), fix=f"Give another {name}=.")
