"""What a training run is made of: the schema of a stage and of a sequence.

The models are strict: a number is never read from a string, and a key that is not in the schema is a fault.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Count = Annotated[int, Field(gt=0)]

_GRPO_ONLY = ("samples", "temperature", "beta", "loss", "scale_rewards", "max_new_tokens", "vllm")
_SFT_ONLY = ("evaluate_every",)


def broken_rule(key: str, *, expected: str, found: str, fix: str) -> PydanticCustomError:
    """Build the fault of a key whose value is of the right type but does not fit with the others."""
    context = {"key": key, "expected": expected, "found": found, "fix": fix}
    return PydanticCustomError("broken_rule", "{key}: expected {expected}; found {found}. {fix}", context)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LoraConfig(_Strict):
    """A low-rank adapter (PEFT), trained in place of the weights and then merged into them.

    Attributes:
        rank: Rank of each update.
        alpha: Updates are scaled by `alpha / rank`.
        dropout: Dropout on the adapter's input.
        target_modules: Names of the modules that get an adapter, or "all-linear".
    """

    rank: Count = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str = "all-linear"


class DomainConfig(_Strict):
    """A domain from a dataset; see `HubDomain`.

    Attributes:
        name: What stages and the evaluation call it.
        dataset: A dataset's id on the Hugging Face hub, or a folder.
        prompt: Template of the prompt over the dataset's columns.
        answer: Template of the gold answer.
        reference: Template of what the reward checks against, where that is not the answer.
        reward: Import path of the reward, `module:function`.
        max_new_tokens: Longest completion in tokens.
        subset: The dataset's configuration.
        split: The split to train on.
        evaluation_split: The split to evaluate on; where none is given, one prompt in eight of `split`.
        revision: Commit, tag or branch of the dataset.
        rows: Take only so many rows of a split.
        smoke: The built-in domain that stands for it in a smoke run; such a run needs it.
    """

    name: Name
    dataset: str
    prompt: str
    answer: str = ""
    reference: str = ""
    reward: str = "rlforget.domains.rewards:exact_match"
    max_new_tokens: Count = 512
    subset: str | None = None
    split: str = "train"
    evaluation_split: str | None = None
    revision: str | None = None
    rows: Count | None = None
    smoke: Literal["code", "math", "qa", "writing", "science"] | None = None


class StageConfig(_Strict):
    """One fine-tune, of one domain.

    Attributes:
        domain: One of the sequence's `domains`, a built-in one, a path to a `.jsonl` file, or `reasoning-gym:NAME`.
        method: `grpo` (TRL's GRPOTrainer on the domain's reward) or `sft` (TRL's SFTTrainer on its gold answers).
        name: What the stage is called; the domain's own name where none is given.
        parent: The stage whose weights it starts from, by name, or `base`; the one before where none is given.
        steps: Optimizer steps, at most.
        learning_rate: Peak learning rate of AdamW.
        schedule: Course of the learning rate after the warm-up.
        warmup: Steps over which the learning rate rises from zero.
        weight_decay: AdamW's.
        max_grad_norm: The gradient is scaled down to this norm; 0 leaves it as it is.
        prompts: Different prompts a step.
        micro_batch: Sequences in one forward pass, where a step's are too many for the memory.
        bf16: Compute in bfloat16 autocast; the weights keep their own dtype.
        activation_checkpointing: Trade time for memory.
        lora: Train an adapter and merge it; without, all weights are trained.
        stop_at_reward: End the stage once the mean sampled reward reaches this: with `grpo` over the samples of the
            last `stop_window` steps, with `sft` over `stop_window * prompts` training prompts, tried every
            `evaluate_every` steps.
        stop_window: Steps over which the reward is averaged for `stop_at_reward`.
        evaluate_every: SFT only: steps from one try of `stop_at_reward` to the next.
        samples: GRPO only: completions a prompt, a group.
        temperature: GRPO only: of the sampling.
        beta: GRPO only: weight of the KL divergence to the weights that the stage started from.
        loss: GRPO only: TRL's `loss_type`.
        scale_rewards: GRPO only: whose standard deviation divides the advantages.
        max_new_tokens: GRPO only: longest completion in tokens; the domain's own where none is given.
        vllm: GRPO only: sample with vLLM, `colocate` on the same devices or `server` on others (see TRL's
            documentation); null: with transformers.
    """

    domain: str
    method: Literal["grpo", "sft"] = "grpo"
    name: Name | None = None
    parent: Name | None = None
    steps: Count = 60
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    prompts: Count = 16
    micro_batch: Count | None = None
    bf16: bool = False
    activation_checkpointing: bool = False
    lora: LoraConfig | None = None
    stop_at_reward: Annotated[float, Field(gt=0, le=1)] | None = None
    stop_window: Count = 10
    evaluate_every: Count = 10
    samples: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    max_new_tokens: Count | None = None
    vllm: Literal["colocate", "server"] | None = None

    @property
    def sequences(self) -> int:
        """Sequences that one optimizer step learns from."""
        return self.prompts * self.samples if self.method == "grpo" else self.prompts

    @model_validator(mode="after")
    def _keys_belong_to_the_method(self) -> Self:
        others, method = (_SFT_ONLY, "sft") if self.method == "grpo" else (_GRPO_ONLY, "grpo")
        defaults = type(self).model_fields
        misplaced = [key for key in others if getattr(self, key) != defaults[key].default]
        if misplaced:
            raise broken_rule(
                misplaced[0],
                expected=f"keys of method {self.method!r}",
                found=f"a key of method {method!r}",
                fix="Remove it, or change the method.",
            )
        if self.micro_batch is not None and self.sequences % self.micro_batch:
            raise broken_rule(
                "micro_batch",
                expected=f"a divisor of the {self.sequences} sequences a step",
                found=str(self.micro_batch),
                fix=f"Give a number that divides {self.sequences}.",
            )
        return self


class EvaluationConfig(_Strict):
    """How every domain is evaluated after every stage.

    Attributes:
        domains: The domains; those of the stages where none is given.
        count: Prompts a domain, from its evaluation split.
        seed: Seed of the prompts and of the completions.
        greedy: Take the likeliest token instead of a draw.
        batch_size: Prompts in one batch.
    """

    domains: list[str] | None = None
    count: Count = 256
    seed: Annotated[int, Field(ge=0)] = 0
    greedy: bool = False
    batch_size: Count = 256


class SequenceConfig(_Strict):
    """Stages that are run one after another, each on the weights that the one before, or its parent, left.

    Attributes:
        model: `miniature`, a checkpoint folder, or a model id of the Hugging Face hub.
        stages: The stages, in order.
        domains: Domains from datasets, which stages and the evaluation then name.
        continue_from: The output folder of a finished sequence on the same model, whose stages are replayed first.
        seed: Decides all data and all draws.
        device: Where to train; `auto` is the GPU where there is one.
        dtype: Dtype of the weights; `auto` is the checkpoint's own.
        evaluation: How every domain is evaluated after every stage.
        save_every: Optimizer steps from one of the trainer's checkpoints of a stage to the next, from which a killed
            run goes on; null: it begins the stage again. Two are kept until the stage is finished, and a third while it
            is written, each of three times the trained weights' size.
    """

    model: str = "miniature"
    stages: Annotated[list[StageConfig], Field(min_length=1)]
    domains: list[DomainConfig] = []
    continue_from: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**20)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    evaluation: EvaluationConfig = EvaluationConfig()
    save_every: Count | None = 100

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        given = Counter(domain.name for domain in self.domains)
        if again := [name for name, count in given.items() if count > 1]:
            raise broken_rule("domains", expected="names that differ", found=f"{again[0]!r} twice", fix="Rename one.")
        times = Counter(["base", *(stage.name for stage in self.stages if stage.name)])
        twice = [name for name, count in times.items() if count > 1]
        if twice:
            raise broken_rule(
                "stages",
                expected="names that differ, and differ from 'base'",
                found=f"{twice[0]!r} twice",
                fix="Rename one.",
            )
        return self
