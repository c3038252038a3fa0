"""What a sequence will need: parameters by the model's shape, memory a device, disk. Worked out, before anything loads.

The figures are sums of what is known to be there at once; the allocator's gaps, buffers of communication and vLLM's own
memory are not. Take them as the least that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.errors import NotACheckpointError
from rlforget.training.config import SequenceConfig, StageConfig
from rlforget.training.plan import Plan
from rlforget.training.shapes import KNOWN
from rlforget.training.world import world_size

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CHECKPOINTS = 3  # two that are kept and one that is written
_BYTES_A_CHANGE = {2: 1.5, 4: 4.0}  # in a delta file, by the width of the dtype (docs/performance.md), at most


@dataclass(frozen=True)
class StageNeeds:
    """The memory of one device at the peak of a stage, in bytes.

    Attributes:
        weights: The parameters, and the copy that GRPO's reference takes.
        optimizer: Gradients and AdamW's two moments of what is trained.
        activations: One layer's activations and the stream between layers, of the sequences of one forward pass, each
            as long as its longest completion; prompts, whose length is not known here, come on top.
        logits: Their logits and gradients, in float32.
        sampling: Keys and values of the completions that are sampled at once; with vLLM none, it has memory of its own.
    """

    name: str
    weights: int
    optimizer: int
    activations: int
    logits: int
    sampling: int

    @property
    def total(self) -> int:
        """What is there at once: sampling is over before activations and logits are."""
        return self.weights + self.optimizer + max(self.activations + self.logits, self.sampling)


@dataclass(frozen=True)
class Needs:
    """What a sequence needs.

    Attributes:
        parameters: Of the model.
        shape: Where the model's shape came from.
        devices: How many processes share the work, each with the whole model.
        stages: The stages' memory.
        evaluation: That of an evaluation: weights, and keys and values of a batch of completions.
        disk: Bytes of all deltas and of the checkpoints of one stage, where every coordinate changes.
    """

    parameters: int
    shape: str
    devices: int
    stages: tuple[StageNeeds, ...]
    evaluation: int
    disk: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "parameters": self.parameters,
            "shape": self.shape,
            "devices": self.devices,
            "disk_bytes": self.disk,
            "evaluation_bytes": self.evaluation,
            "stages": [
                {
                    "name": stage.name,
                    "weights_bytes": stage.weights,
                    "optimizer_bytes": stage.optimizer,
                    "activations_bytes": stage.activations,
                    "logits_bytes": stage.logits,
                    "sampling_bytes": stage.sampling,
                    "total_bytes": stage.total,
                }
                for stage in self.stages
            ],
        }


def needs_of(plan: Plan) -> Needs:
    """Work out what a plan needs; nothing is loaded but the model's configuration.

    Raises:
        NotACheckpointError: The model's shape is not known: no folder, not in the hub's cache, and none of `shapes`.
    """
    config = plan.config
    shape, source = model_shape(config.model)
    parameters = _parameters(shape)
    width = _BYTES[_dtype(config, shape)]
    stages = tuple(
        _stage(name, stage, shape, parameters, width, plan.stage_domains[place].max_new_tokens)
        for place, (name, stage) in enumerate(zip(plan.names, config.stages, strict=True))
    )
    checkpoints = 0 if config.save_every is None else _CHECKPOINTS * 3 * parameters * width
    disk = int(len(stages) * parameters * _BYTES_A_CHANGE[width]) + checkpoints
    longest = max(domain.max_new_tokens for domain in plan.evaluated)
    evaluation = parameters * width + _keys_and_values(shape, config.evaluation.batch_size * longest)
    return Needs(parameters, source, world_size(), stages, evaluation, disk)


def model_shape(name: str) -> tuple[Any, str]:
    """Return the transformers configuration of a model, and where it came from."""
    from transformers import AutoConfig

    from rlforget.domains import miniature

    if name == "miniature":
        return AutoConfig.from_pretrained(miniature.path()), "the shipped miniature"
    if Path(name).is_dir():
        return AutoConfig.from_pretrained(name), f"{name}/config.json"
    if name in KNOWN:
        kind, settings = KNOWN[name]
        return AutoConfig.for_model(kind, **settings), "the shapes that rlforget knows by name"
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True), "the hub's cache"
    except (OSError, ValueError) as fault:
        raise NotACheckpointError(
            f"model {name!r}",
            expected=f"a folder, a model in the hub's cache, or one of {', '.join(KNOWN)}",
            found=str(fault).splitlines()[0],
            fix="Fetch its configuration first: transformers.AutoConfig.from_pretrained(name).",
        ) from fault


def _parameters(shape: Any) -> int:
    """Count a model's parameters, tied ones once, without making them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    return sum(parameter.numel() for parameter in model.parameters())


def _dtype(config: SequenceConfig, shape: Any) -> str:
    if config.dtype != "auto":
        return config.dtype
    return str(shape.dtype or "float32").removeprefix("torch.")


def _stage(name: str, stage: StageConfig, shape: Any, parameters: int, width: int, longest: int) -> StageNeeds:
    share = max(stage.sequences // world_size(), 1)
    length = stage.max_new_tokens or longest
    tokens = (stage.micro_batch or share) * length
    sampled = share * length if stage.method == "grpo" and stage.vllm is None else 0
    trained = parameters if stage.lora is None else _adapter(stage, shape)
    copies = 2 if stage.method == "grpo" and stage.beta > 0 and stage.lora is None else 1
    layer = 2 * tokens * (6 * shape.hidden_size + 3 * shape.intermediate_size)
    kept = 1 if stage.activation_checkpointing else shape.num_hidden_layers
    stream = 2 * tokens * shape.hidden_size * shape.num_hidden_layers
    return StageNeeds(
        name=name,
        weights=copies * parameters * width,
        optimizer=3 * trained * width,
        activations=stream + kept * layer,
        logits=2 * 4 * tokens * shape.vocab_size,
        sampling=_keys_and_values(shape, sampled),
    )


def _keys_and_values(shape: Any, tokens: int) -> int:
    """Return the bytes of a cache for so many tokens, in 16 bits."""
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return int(2 * shape.num_hidden_layers * shape.num_key_value_heads * size * 2 * tokens)


def _adapter(stage: StageConfig, shape: Any) -> int:
    """Count an adapter's parameters on all linear layers, about: their inputs and outputs times the rank."""
    assert stage.lora is not None
    heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    sides = 4 * shape.hidden_size + (heads + shape.num_attention_heads) * size
    sides += 3 * (shape.hidden_size + shape.intermediate_size)
    return int(stage.lora.rank * sides * shape.num_hidden_layers)
