"""Train the miniature, measure it, and save it as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlforget.domains.base import Domain
from rlforget.domains.evaluation import evaluate
from rlforget.domains.miniature.lines import DOMAINS
from rlforget.domains.miniature.pretrain import SHIPPED, Progress, pretrain, recipe_for
from rlforget.domains.miniature.threads import one_thread
from rlforget.domains.miniature.tokenizer import build_tokenizer

SCORES_FILE = "miniature.json"
EVALUATION_PROMPTS = 1024


def build(seed: int, out: Path, progress: Progress | None = None, *, size: str = SHIPPED) -> dict[str, Any]:
    """Train the miniature of `seed` and `size` and save it in the folder `out`, `miniature.json` beside the weights.

    Returns:
        What `miniature.json` holds: seed, command, recipe, and the sampled and greedy reward of each domain.
    """
    recipe = recipe_for(size, seed)
    tokenizer = build_tokenizer()
    with one_thread():
        model = pretrain(recipe, progress)
        scores = measure(model, tokenizer)
    record = {
        "seed": seed,
        "command": f"rlforget miniature --seed {seed}" + ("" if size == SHIPPED else f" --size {size}"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": asdict(recipe),
        "scores": scores,
    }
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / SCORES_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Sampled and greedy reward of every built-in domain, with standard errors, on evaluation prompts."""
    scores: dict[str, dict[str, float]] = {}
    for name in DOMAINS:
        domain: Domain = DOMAINS[name]
        sampled = evaluate(model, tokenizer, domain, count=EVALUATION_PROMPTS)
        greedy = evaluate(model, tokenizer, domain, count=EVALUATION_PROMPTS, greedy=True)
        scores[name] = {
            "sampled": round(sampled.mean, 4),
            "sampled_stderr": round(sampled.stderr, 4),
            "greedy": round(greedy.mean, 4),
            "greedy_stderr": round(greedy.stderr, 4),
        }
    return scores
