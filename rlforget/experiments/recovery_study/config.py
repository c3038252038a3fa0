"""What the study runs: its schema, read from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlforget.training import StageConfig
from rlforget.training.yaml_file import load_yaml

Method = Literal["grpo", "sft"]
Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**20)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BaseModelConfig(_Strict):
    """A base that the study pretrains where it is not there yet.

    Attributes:
        seed: Seed of its weights and of its data, as of `rlforget miniature --seed`.
        size: A size of the miniature.
        rate: What the stages' learning rates are multiplied by: wider models take smaller steps.
    """

    seed: Seed
    size: str = "0.2M"
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class Length(_Strict):
    """How a stage is trained.

    Attributes:
        steps: Optimizer steps.
        learning_rate: AdamW's.
        prompts: Different prompts a step.
    """

    steps: Count
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    prompts: Count = 16

    def stage(self, domain: str, method: Method, name: str, parent: str) -> StageConfig:
        """Build the stage of one domain."""
        return StageConfig(
            domain=domain,
            method=method,
            name=name,
            parent=parent,
            steps=self.steps,
            learning_rate=self.learning_rate,
            prompts=self.prompts,
        )

    def times(self, rate: float) -> Length:
        """Return the same stage at `rate` times the learning rate."""
        return self.model_copy(update={"learning_rate": self.learning_rate * rate})

    def at_most(self, steps: int) -> Length:
        """Return the same stage, not longer than `steps`."""
        return self.model_copy(update={"steps": min(self.steps, steps)})


class Lengths(_Strict):
    """The stages of one method.

    Attributes:
        earlier: Of the stage of an earlier domain.
        later: Of the later domain, whose stage is to hurt.
        deep: Of a later domain that is to leave the earlier one no reward; none where it is not tried.
    """

    earlier: Length
    later: Length
    deep: Length | None = None

    def times(self, rate: float) -> Lengths:
        """Return the same stages at `rate` times the learning rate."""
        deep = None if self.deep is None else self.deep.times(rate)
        return Lengths(earlier=self.earlier.times(rate), later=self.later.times(rate), deep=deep)

    def fast(self) -> Lengths:
        """Return the lengths of the short form."""
        return Lengths(earlier=self.earlier.at_most(20), later=self.later.at_most(60))


class StudyConfig(_Strict):
    """The study.

    Attributes:
        domains: The domains, in the order of the full sequence.
        pairs: The pairs (earlier, later) that are tried; every ordered one where none are given.
        base: The base of the pairs: `miniature`, a folder, or one to pretrain.
        methods: How stages are trained, for each method.
        seeds: Seeds of the fine-tunes.
        deep: Pairs (earlier, later) that are tried with `deep` lengths too.
        bases: Further bases, pretrained apart, on which the full sequence is tried.
        sizes: Bases of several sizes, on which the number of samples is tried.
        evaluation_prompts: Prompts a domain for every reward; they are used for nothing else.
        samples: Completions a domain for Fishers and subspaces.
        few: Completions a domain where few are tried.
        least_loss: A pair whose earlier domain lost less than this, or whose later one gained less, is reported and
            left out of the shares.
        budgets: Shares of the coordinates that are put back.
        refresh_steps: Steps of a refresh at which it is measured.
        one_in: Costly measurements, by name, that are made in one pair of so many, in other pairs for every seed.
    """

    domains: Annotated[list[str], Field(min_length=2)]
    pairs: list[list[str]] | None = None
    base: str | BaseModelConfig = "miniature"
    methods: Annotated[dict[Method, Lengths], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    deep: list[list[str]] = []
    bases: list[BaseModelConfig] = []
    sizes: list[BaseModelConfig] = []
    evaluation_prompts: Count = 512
    samples: Count = 512
    few: Count = 32
    least_loss: Annotated[float, Field(ge=0, lt=1)] = 0.05
    budgets: list[float] = [0.001, 0.005, 0.02, 0.05, 0.2]
    refresh_steps: list[int] = [1, 2, 5, 10, 20, 40]
    one_in: dict[str, Count] = {}

    def fast(self) -> StudyConfig:
        """Return the short form: two pairs, one seed, short stages, few prompts. Its effects are smaller."""
        methods = {name: lengths.fast() for name, lengths in self.methods.items()}
        last = self.domains[-1]
        return self.model_copy(
            update={
                "pairs": [[first, last] for first in self.domains[:2] if first != last],
                "methods": methods,
                "seeds": self.seeds[:1],
                "deep": [],
                "bases": [],
                "sizes": [],
                "evaluation_prompts": min(self.evaluation_prompts, 256),
                "samples": min(self.samples, 96),
                "least_loss": 0.02,
                "budgets": [0.02, 0.05],
                "refresh_steps": [1, 5, 10],
                "one_in": {},
            }
        )


def load_study(path: Path) -> StudyConfig:
    """Read a study's YAML file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or does not fit the schema.
    """
    return load_yaml(path, StudyConfig)
