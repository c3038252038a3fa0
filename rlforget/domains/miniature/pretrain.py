"""Train the miniature from nothing to partial skill in the five domains.

Three phases. First look-up lines alone, several look-ups a line: without them question answering stays at chance.
Then all domains together, to competence. Last, a short phase on answers of which a share is corrupted: greedy skill
stays, sampled reward falls, so that later fine-tuning has room to gain and to lose.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.domains.batches import IGNORED
from rlforget.domains.miniature.lines import DOMAINS, Line, corrupt, draw
from rlforget.domains.miniature.tokenizer import EOS, PAD, VOCABULARY
from rlforget.errors import UnknownNameError

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

Progress = Callable[[str, int, int, float], None]  # phase, step, steps, loss

_TOKEN = {token: i for i, token in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Shape:
    """How large a miniature is.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream; the MLPs are three times as wide, a head has 16 dimensions in the shipped
            size and 32 above it, and half as many key-value heads as query heads.
        heads: Query heads.
        spread: Standard deviation of the initial weights. Above the shipped size, 0.02 does not get off the ground:
            at 1M the loss stays at that of guessing for 1,200 steps.
    """

    layers: int
    hidden: int
    heads: int
    spread: float = 0.02


SHIPPED = "0.2M"
SHAPES = {SHIPPED: Shape(4, 64, 4), "1M": Shape(6, 128, 4, spread=0.08), "4M": Shape(5, 256, 8, spread=0.06)}
"""The sizes, by about how many parameters they have."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the miniature's weights.

    Attributes:
        seed: Seed of the initial weights and of all data.
        size: A name of `SHAPES`.
        lookup_steps: Longest first phase; it ends sooner once its loss is below `lookup_loss`.
        lookup_loss: Mean loss, in nats a scored token, at which the look-up circuits count as built.
        competence_steps: Steps on all domains.
        noise_steps: Steps on partly corrupted answers.
        corrupted: Share of answers corrupted in the last phase.
        learning_rate: Of the first two phases: warm-up, then constant, then down to zero over the last quarter.
        noise_learning_rate: Of the last phase.
        mixture: Lines of each kind in a batch of the second phase.
    """

    seed: int = 0
    size: str = SHIPPED
    lookup_steps: int = 1600
    lookup_loss: float = 0.15
    competence_steps: int = 1800
    noise_steps: int = 250
    corrupted: float = 0.4
    learning_rate: float = 3e-3
    noise_learning_rate: float = 5e-4
    mixture: dict[str, int] = field(
        default_factory=lambda: {
            "qa": 16,
            "lookups": 12,
            "pairs": 6,
            "math": 24,
            "code": 28,
            "science": 28,
            "writing": 8,
            "sums": 8,
        }
    )


def pretrain(recipe: Recipe, progress: Progress | None = None) -> Qwen2ForCausalLM:
    """Train a miniature by `recipe`: the same weights each time, on the same machine and number of threads."""
    model = build_model(recipe.seed, recipe.size)
    rng = random.Random(f"miniature/{recipe.seed}")
    report = progress or (lambda *_: None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    warm = 100

    recent, warmed = 0.0, 0
    for step in range(recipe.lookup_steps):
        _set_rate(optimizer, recipe.learning_rate * min(1.0, (step + 1) / warm))
        loss = _step(model, optimizer, [*draw(rng, "lookups", 48), *draw(rng, "pairs", 32)])
        recent = loss if step == 0 else 0.95 * recent + 0.05 * loss
        report("look-ups", step, recipe.lookup_steps, recent)
        warmed = step + 1
        if recent < recipe.lookup_loss:
            break
    decay = max(1, recipe.competence_steps // 4)
    for step in range(recipe.competence_steps):
        course = min(1.0, (warmed + step + 1) / warm, (recipe.competence_steps - step) / decay)
        _set_rate(optimizer, recipe.learning_rate * course)
        loss = _step(model, optimizer, [x for kind, n in recipe.mixture.items() for x in draw(rng, kind, n)])
        report("competence", step, recipe.competence_steps, loss)
    _set_rate(optimizer, recipe.noise_learning_rate)
    taught = [name for name in DOMAINS if name in recipe.mixture]
    for step in range(recipe.noise_steps):
        lines = [line for name in taught for line in draw(rng, name, 20)]
        lines = [corrupt(rng, line) if rng.random() < recipe.corrupted else line for line in lines]
        report("noise", step, recipe.noise_steps, _step(model, optimizer, lines))
    return model.eval()


def recipe_for(size: str, seed: int) -> Recipe:
    """Return the recipe of a size.

    Those above the shipped size learn math, code and writing alone, at a lower rate and in small batches: they are
    there to show what grows with the model, and the look-ups of qa and science are what takes longest.

    Raises:
        UnknownNameError: There is no such size.
    """
    if size not in SHAPES:
        raise UnknownNameError(
            f"size {size!r}", expected=f"one of {', '.join(SHAPES)}", found=repr(size), fix="Check the spelling."
        )
    if size == SHIPPED:
        return Recipe(seed=seed)
    rate, steps = {"1M": (2e-3, 1500), "4M": (1e-3, 1000)}[size]
    return Recipe(
        seed=seed,
        size=size,
        lookup_steps=0,
        competence_steps=steps,
        noise_steps=150,
        learning_rate=rate,
        noise_learning_rate=rate / 6,
        mixture={"math": 20, "code": 20, "writing": 6, "sums": 8},
    )


def build_model(seed: int, size: str = SHIPPED) -> Qwen2ForCausalLM:
    """Build an untrained miniature: tied embeddings, float32, half as many key-value heads as query heads."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = SHAPES[size]
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        initializer_range=shape.spread,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=_TOKEN[PAD],
        bos_token_id=None,
        eos_token_id=_TOKEN[EOS],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def _step(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, lines: list[Line]) -> float:
    ids, labels = _encode(lines)
    logits = model(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _encode(lines: list[Line]) -> tuple[Tensor, Tensor]:
    width = max(len(line.text) for line in lines) + 1
    ids = torch.full((len(lines), width), _TOKEN[PAD], dtype=torch.int64)
    labels = torch.full((len(lines), width), IGNORED, dtype=torch.int64)
    for row, line in enumerate(lines):
        end = len(line.text)
        ids[row, : end + 1] = torch.tensor([*(_TOKEN[c] for c in line.text), _TOKEN[EOS]])
        kept = torch.tensor([*line.scored, end] if line.ends else line.scored)
        labels[row, kept] = ids[row, kept]
    return ids, labels


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
