"""Which token of a counterfactual prompt stands for which of the clean one, where the two are of different lengths."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]
"""(start, stop) of a prompt's tokens, counted from 0, as in a slice."""

Spans = Sequence[tuple[Span, Span]]
"""Spans of the clean prompt, each with the counterfactual's span that stands for it."""


def align(clean: Sequence[int], counterfactual: Sequence[int], spans: Spans = ()) -> list[int]:
    """Say for each token of the clean prompt which token of the counterfactual one stands for it.

    Prompts of one length are aligned token by token. Otherwise each span stands for its partner, and what lies before,
    between and after the spans token by token. Without spans there is one: what lies between the prompts' common
    beginning and their common end. In two spans of different lengths the last tokens stand for each other, and so on
    backwards, since what a causal model knows of a phrase it knows at its end; the tokens that are over at a longer
    clean span's beginning all take the first one of its partner.

    Args:
        clean: Token ids.
        counterfactual: Token ids.
        spans: In order, none of them empty.

    Returns:
        One place in `counterfactual` for each token of `clean`.

    Raises:
        ValueError: The spans do not fit the prompts, or without any, one prompt only adds tokens to the other: then
            nothing stands for them, or they for nothing.
    """
    if len(clean) == len(counterfactual) and not spans:
        return list(range(len(clean)))
    found: list[int] = []
    here = there = 0  # where the last spans ended
    for (start, stop), (source, source_stop) in spans or [_between_common_ends(clean, counterfactual)]:
        named = f"{start}:{stop} and {source}:{source_stop}"
        if start >= stop or source >= source_stop:
            raise ValueError(f"which differ in {named}, one of them empty")
        if start < here or stop > len(clean) or source_stop > len(counterfactual) or start - here != source - there:
            raise ValueError(f"where the spans {named} do not fit")
        found += range(there, source)
        found += (max(source, source_stop - (stop - place)) for place in range(start, stop))
        here, there = stop, source_stop
    if len(clean) - here != len(counterfactual) - there:
        raise ValueError("which differ in length after the last span")
    return [*found, *range(there, len(counterfactual))]


def _between_common_ends(clean: Sequence[int], counterfactual: Sequence[int]) -> tuple[Span, Span]:
    shorter = min(len(clean), len(counterfactual))
    first = next((i for i in range(shorter) if clean[i] != counterfactual[i]), shorter)
    last = next((i for i in range(shorter - first) if clean[-1 - i] != counterfactual[-1 - i]), shorter - first)
    return (first, len(clean) - last), (first, len(counterfactual) - last)
