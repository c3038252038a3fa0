"""Prompts that are kept apart: what rules are measured on, what they are judged by, what the chosen one is reported on.

The first two are of the train split. The last are of the evaluation split, and no prompt is in two of them, whatever a
domain of the user's own makes of its splits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from rlforget.domains.base import Domain, Example, Split
from rlforget.errors import ConfigError, EmptyDomainError

Prompts = dict[Domain, Sequence[Example]]

_APART = 1_000_003  # from the seed of the prompts that the rules are measured on to that of the validation prompts


def validation_prompts(named: Iterable[Domain], *, samples: int, count: int, seed: int) -> Prompts:
    """Return what rules are judged by: none of the prompts that they are measured on with these `samples` and `seed`.

    Raises:
        ConfigError: Too few prompts to tell an error by.
        EmptyDomainError: A domain has fewer.
    """
    for name, number in (("samples", samples), ("validation", count)):
        if number < 2:
            raise ConfigError(name, expected="at least 2", found=str(number), fix=f"Give another {name}=.")
    return {
        domain: _unseen(domain, count, seed=seed + _APART, split="train", seen=_measured(domain, samples, seed))
        for domain in named
    }


def report_prompts(asked: Mapping[Domain, Sequence[Example]], *, samples: int, count: int, seed: int) -> Prompts:
    """Return what the chosen rule is reported on: nothing that was measured, nor `asked` to choose it.

    Raises:
        EmptyDomainError: A domain has too few prompts in its evaluation split.
    """
    return {
        domain: _unseen(
            domain,
            count,
            seed=seed,
            split="eval",
            seen=_measured(domain, samples, seed) | {example.prompt for example in examples},
        )
        for domain, examples in asked.items()
    }


def _measured(domain: Domain, samples: int, seed: int) -> set[str]:
    """Return the prompts that `interference.completions.collect` takes."""
    return {example.prompt for example in domain.examples(samples, seed=seed, split="train")}


def _unseen(
    domain: Domain, count: int, *, seed: int, split: Split, seen: Collection[str] = frozenset()
) -> list[Example]:
    """Return `count` examples of a split with prompts that differ and are none of those in `seen`.

    Raises:
        EmptyDomainError: The domain has too few.
    """
    found: dict[str, Example] = {}
    for factor in (1, 2, 4, 8, 16):
        for example in domain.examples(factor * (count + len(seen)), seed=seed, split=split):
            if example.prompt not in seen:
                found.setdefault(example.prompt, example)
        if len(found) >= count:
            return list(found.values())[:count]
    raise EmptyDomainError(
        f"domain {domain.name!r}",
        expected=f"{count} different prompts of split {split!r} that nothing was measured on",
        found=str(len(found)),
        fix="Ask for fewer samples, and fewer prompts to validate or evaluate on, or add examples.",
    )
