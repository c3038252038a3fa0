"""What a sequence is going to do, and whether what is on disk was done by it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from rlforget.domains import Domain
from rlforget.errors import ConfigError
from rlforget.training.config import SequenceConfig, StageConfig
from rlforget.training.naming import domain_named
from rlforget.training.run_folder import StageFolder

BASE = "base"


class Plan:
    """A configuration with its domains made, its stages named and their parents found.

    Stages count from 1; 0 is the base.

    Raises:
        UnknownNameError, DomainFileError: There is no such domain.
        ConfigError: There is no such parent.
    """

    def __init__(self, config: SequenceConfig) -> None:
        self.config = config
        named = cache(partial(domain_named, config))  # each once: a domain keeps the dataset that it has read
        self.stage_domains = [named(stage.domain) for stage in config.stages]
        specs = config.evaluation.domains
        wanted = self.stage_domains if specs is None else [named(spec) for spec in specs]
        self.evaluated = list({domain.name: domain for domain in wanted}.values())
        self.names = _stage_names(config.stages, self.stage_domains)
        self.parents = _parents(config.stages, self.names)

    def settings(self) -> dict[str, Any]:
        """Return what decides all stages, except the model's path: its weights are compared instead."""
        shared = self.config.model_dump(exclude={"stages", "model", "device", "continue_from", "save_every"})
        shared["evaluation"]["domains"] = [domain.name for domain in self.evaluated]
        shared["domains"] = [{k: v for k, v in given.items() if k != "smoke"} for given in shared["domains"]] or None
        return shared

    def continue_from(self) -> str | None:
        """Return the absolute path of the run that this one goes on from."""
        folder = self.config.continue_from
        return None if folder is None else str(Path(folder).resolve())

    def stage_seed(self, index: int) -> int:
        """Return the seed of stage `index`."""
        return self.config.seed * 1000 + index

    def line(self, index: int) -> list[int]:
        """Return the stages from the base's first child down to stage `index`, parents first."""
        return [] if index == 0 else [*self.line(self.parents[index - 1]), index]

    def check_unchanged(self, finished: list[StageFolder]) -> None:
        """Check that what is finished was made by this configuration.

        Raises:
            ConfigError: It was not; the message names the key.
        """
        if not finished:
            return
        _check_equal(finished[0], "", finished[0].record["settings"], self.settings())
        if len(finished) - 1 > len(self.names):
            raise changed(finished[-1], "stages", f"{len(finished) - 1} stages at least", str(len(self.names)))
        for stage, name, config in zip(finished[1:], self.names, self.config.stages, strict=False):
            where = f"stages[{stage.index - 1}]."
            if stage.name != name:
                raise changed(stage, f"{where}name", stage.name, name)
            _check_equal(stage, where, stage.record["config"], config.model_dump())


def _stage_names(stages: list[StageConfig], stage_domains: list[Domain]) -> list[str]:
    """Name every stage: as it says, or after its domain, with a number where that is taken."""
    taken = {BASE, *(stage.name for stage in stages if stage.name)}
    names: list[str] = []
    for stage, domain in zip(stages, stage_domains, strict=True):
        names.append(stage.name or _free_name(domain.name, taken))
        taken.add(names[-1])
    return names


def _free_name(wanted: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted)
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return plain if plain not in taken else next(name for name in numbered if name not in taken)


def _parents(stages: list[StageConfig], names: list[str]) -> list[int]:
    """Find every stage's parent among the stages before it."""
    places = [BASE, *names]
    parents: list[int] = []
    for index, stage in enumerate(stages):
        earlier = places[: index + 1]
        if stage.parent is not None and stage.parent not in earlier:
            raise ConfigError(
                f"key stages[{index}].parent",
                expected=f"an earlier stage, one of {', '.join(earlier)}",
                found=repr(stage.parent),
                fix="Check the spelling, or move the stage.",
            )
        parents.append(index if stage.parent is None else earlier.index(stage.parent))
    return parents


def _check_equal(stage: StageFolder, where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _check_equal(stage, f"{where}{key}.", old, new)
        elif old != new:
            raise changed(stage, f"{where}{key}", repr(old), repr(new))


def changed(stage: StageFolder, key: str, then: str, now: str) -> ConfigError:
    """Build the fault of a key that is no longer what it was when a finished stage was made."""
    return ConfigError(
        f"key {key}",
        expected=f"{then}, as when {stage.path} was made",
        found=now,
        fix="Change it back, or choose another output folder.",
    )
