"""The Gram matrix of per-sample gradients: ours beside TorchJD's autogram engine, in turns, in one process.

`python -m benchmarks.peers.grams`, by the Python that has torchjd, numba and transformers, prints one line of JSON.
Each has a model of its own with the same weights, for the engine's hooks count every forward pass of theirs.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_extra

ROUNDS = 3
SHAPES = {"miniature": (64, 4, 16, 24), "wider": (256, 4, 32, 64), "widest": (768, 4, 16, 32)}
"""Hidden width, layers, samples, tokens a sample."""


def main() -> None:
    """Measure every shape."""
    found = {name: measure(*shape) for name, shape in SHAPES.items()}
    sys.stdout.write(json.dumps({"versions": {"torchjd": version("torchjd")}, "shapes": found}) + "\n")


def measure(hidden: int, layers: int, samples: int, tokens: int) -> dict[str, Any]:
    """Take the Gram matrix of the log-probabilities of the second half of each line, over all parameters.

    Returns:
        The best `seconds` of either, the peak `bytes` of memory beyond what was there, the share by which theirs
        differs from ours, and the sizes.
    """
    from torchjd.autogram import Engine

    from rlforget.interference.gram import sample_gram

    model, ids = build(hidden, layers, samples, tokens)
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    other = copy.deepcopy(model)
    engine = Engine(other, batch_dim=0)

    def theirs() -> Tensor:
        return engine.compute_gramian(losses(other, batch))

    def ours() -> Tensor:
        return sample_gram(model, [batch], samples=samples, block=samples)

    first, second = theirs().double(), ours()  # also warms both up
    seconds = {"torchjd": [], "rlforget": []}  # type: dict[str, list[float]]
    for _ in range(ROUNDS):
        for name, function in (("torchjd", theirs), ("rlforget", ours)):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    cpu = torch.device("cpu")
    return {
        "bytes": {"torchjd": peak_extra(theirs, cpu), "rlforget": peak_extra(ours, cpu)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "samples": samples,
        "tokens": tokens,
        "seconds": {name: min(times) for name, times in seconds.items()},
        "difference": float((first - second).norm() / second.norm()),
    }


def build(hidden: int, layers: int, samples: int, tokens: int) -> tuple[Any, Tensor]:
    """Return a random Qwen2 and lines of random tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=tokens,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config).eval(), torch.randint(0, 256, (samples, tokens))


def losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return −log π of each line's labels, [samples]."""
    ids, labels = batch["input_ids"], batch["labels"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    taken = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(taken * (labels[:, 1:] != -100)).sum(1)


if __name__ == "__main__":
    main()
