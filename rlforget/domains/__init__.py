"""Domains: skills with data and a reward. Five are built in; files and reasoning-gym give others."""

from __future__ import annotations

from pathlib import Path

from rlforget.domains.arithmetic import Math
from rlforget.domains.base import Domain, Example, GeneratedDomain, Split
from rlforget.domains.batches import completion_batches, prompt_batches
from rlforget.domains.code import Code
from rlforget.domains.evaluation import Score, evaluate
from rlforget.domains.gym import ReasoningGymDomain
from rlforget.domains.hub import HubDomain
from rlforget.domains.jsonl import JsonlDomain
from rlforget.domains.qa import QA
from rlforget.domains.sampling import sample
from rlforget.domains.science import Science
from rlforget.domains.writing import Writing
from rlforget.errors import UnknownNameError

BUILT_IN: dict[str, type[GeneratedDomain]] = {d.name: d for d in (Code, Math, QA, Writing, Science)}

__all__ = [
    "BUILT_IN",
    "Domain",
    "Example",
    "HubDomain",
    "JsonlDomain",
    "ReasoningGymDomain",
    "Score",
    "Split",
    "completion_batches",
    "evaluate",
    "get",
    "prompt_batches",
    "sample",
]


def get(spec: str | Domain) -> Domain:
    """Return the domain that `spec` names.

    Args:
        spec: A built-in name (`code`, `math`, `qa`, `writing`, `science`), a path that ends in `.jsonl` (see
            `JsonlDomain.from_file`), `reasoning-gym:NAME`, or a domain, which is returned as it is.

    Raises:
        UnknownNameError: There is no such domain.
    """
    if isinstance(spec, Domain):
        return spec
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    if spec.endswith(".jsonl"):
        return JsonlDomain.from_file(Path(spec))
    if spec.startswith("reasoning-gym:"):
        return ReasoningGymDomain(spec.removeprefix("reasoning-gym:"))
    raise UnknownNameError(
        f"domain {spec!r}",
        expected=f"one of {', '.join(BUILT_IN)}, a path to a .jsonl file, or reasoning-gym:NAME",
        found=repr(spec),
        fix="Check the spelling.",
    )
