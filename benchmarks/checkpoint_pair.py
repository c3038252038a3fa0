"""Write a pair of checkpoint folders, `before` and `after`, in the shapes of Qwen2.5.

    python -m benchmarks.checkpoint_pair runs/pair-0.5b --size 0.5b --changed 0.0114

Weights are bfloat16, normal with a deviation of 0.02. The update is uniform noise, added in float32 and rounded back,
its amplitude such that the asked share of coordinates changes bits: two changes in three are then one unit in the last
place, the others more, on the smallest weights: as after RL fine-tunes with small learning rates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

DEVIATION = 0.02
SHARD_BYTES = 1 << 29


@dataclass(frozen=True)
class Shape:
    """The widths of a model.

    Attributes:
        kv: Width of the keys, and of the values.
        tied: Whether the embedding is the output layer too.
    """

    hidden: int
    intermediate: int
    layers: int
    kv: int
    vocabulary: int
    tied: bool

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return 64 if self.hidden < 2048 else 128

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, by the names of transformers."""
        wide = self.hidden
        yield "model.embed_tokens.weight", (self.vocabulary, wide)
        for layer in range(self.layers):
            attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
            for name, width in (("q_proj", wide), ("k_proj", self.kv), ("v_proj", self.kv)):
                yield f"{attention}.{name}.weight", (width, wide)
                yield f"{attention}.{name}.bias", (width,)
            yield f"{attention}.o_proj.weight", (wide, wide)
            yield f"{mlp}.gate_proj.weight", (self.intermediate, wide)
            yield f"{mlp}.up_proj.weight", (self.intermediate, wide)
            yield f"{mlp}.down_proj.weight", (wide, self.intermediate)
            yield f"model.layers.{layer}.input_layernorm.weight", (wide,)
            yield f"model.layers.{layer}.post_attention_layernorm.weight", (wide,)
        yield "model.norm.weight", (wide,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, wide)

    def config(self) -> dict[str, object]:
        """Return what transformers wants in `config.json`."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": max(1, self.kv // self.head),
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(256, 704, 4, 64, 4096, True),
    "0.5b": Shape(896, 4864, 24, 128, 151_936, True),
    "1.5b": Shape(1536, 8960, 28, 256, 151_936, True),
    "3b": Shape(2048, 11_008, 36, 256, 151_936, True),
    "7b": Shape(3584, 18_944, 28, 512, 152_064, False),
}


def write_pair(folder: Path, size: str, changed: float = 0.0114, seed: int = 0) -> None:
    """Write `folder/before` and `folder/after`, in shards of about half a GB, one of them in memory at a time."""
    shape, generator, noise = SHAPES[size], torch.Generator().manual_seed(seed), amplitude(changed)
    sides = [folder / "before", folder / "after"]
    for side in sides:
        side.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(_shards(shape), 1):
        file, shards = f"model-{number:05d}.safetensors", ({}, {})  # type: tuple[dict[str, Tensor], dict[str, Tensor]]
        for name, dimensions in names:
            before = torch.empty(dimensions).normal_(0, DEVIATION, generator=generator).bfloat16()
            shards[0][name], shards[1][name] = before, moved(before, noise, generator)
            weight_map[name], total = file, total + before.nbytes
        for side, shard in zip(sides, shards, strict=True):
            save_file(shard, side / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for side in sides:
        (side / "config.json").write_text(json.dumps(shape.config(), indent=2))
        (side / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def amplitude(changed: float) -> float:
    """Find the amplitude of uniform noise that changes the bits of the share `changed` of the weights, by bisection."""
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(1 << 20, generator=generator) * DEVIATION).bfloat16()
    wide, unit = weights.float(), _unit_noise(weights.shape, torch.Generator().manual_seed(1))
    low, high = 1e-9, 1e-1
    for _ in range(40):
        middle = (low * high) ** 0.5
        share = ((wide + unit * middle).bfloat16() != weights).float().mean()
        low, high = (middle, high) if share < changed else (low, middle)
    return high


def moved(weights: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Add uniform noise, drawn on the generator's device, and round back."""
    return (weights.float() + _unit_noise(weights.shape, generator) * noise).bfloat16()


def _unit_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1


def _shards(shape: Shape) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    shard, size = [], 0
    for name, dimensions in shape.tensors():
        shard.append((name, dimensions))
        size += 2 * torch.Size(dimensions).numel()
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_pair", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="0.5b")
    parser.add_argument("--changed", type=float, default=0.0114, help="share of the coordinates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write_pair(options.folder, options.size, options.changed, options.seed)
    sys.stdout.write(f"{options.folder}/before {options.folder}/after\n")


if __name__ == "__main__":
    main()
