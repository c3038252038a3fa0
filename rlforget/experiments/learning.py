"""Do both trainers learn? Every domain, by GRPO and by SFT, from the miniature, over seeds.

Run as `python -m rlforget.experiments.learning docs/learning.md`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from rlforget import domains
from rlforget.domains import miniature
from rlforget.experiments.markdown import table
from rlforget.training import Progress, StageConfig, train_stage
from rlforget.training.progress import choose

STEPS, RATE, SEQUENCES = 20, 1e-3, 128
EVALUATION_PROMPTS = 512


def learn(domain: str, method: str, seed: int, progress: Progress) -> float:
    """Train the miniature in one domain, and return its sampled reward there afterwards, on evaluation prompts."""
    model, tokenizer = miniature.load()
    prompts = SEQUENCES if method == "sft" else SEQUENCES // 8  # GRPO draws eight completions a prompt
    stage = StageConfig.model_validate(
        {"domain": domain, "method": method, "steps": STEPS, "learning_rate": RATE, "prompts": prompts}
    )
    train_stage(model, tokenizer, stage, seed=seed, progress=progress)
    return domains.evaluate(model, tokenizer, domains.get(domain), count=EVALUATION_PROMPTS).mean


def page(seeds: Sequence[int], progress: Progress) -> str:
    """Write a Markdown table: reward before, and after each method, mean ± standard deviation over seeds."""
    model, tokenizer = miniature.load()
    rows = []
    for name in domains.BUILT_IN:
        before = domains.evaluate(model, tokenizer, domains.get(name), count=EVALUATION_PROMPTS)
        after = []
        for method in ("grpo", "sft"):
            rewards = [learn(name, method, seed, progress) for seed in seeds]
            spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
            after.append(f"{statistics.fmean(rewards):.3f} ± {spread:.3f}")
        rows.append((name, f"{before.mean:.3f} (standard error {before.stderr:.3f})", *after))
    intro = (
        f"Sampled reward on {EVALUATION_PROMPTS} evaluation prompts before and after {STEPS} steps of {SEQUENCES} "
        f"sequences at\nlearning rate {RATE:g}, mean ± standard deviation over seeds "
        f"{', '.join(map(str, seeds))}. Made by\n`python -m rlforget.experiments.learning docs/learning.md`."
    )
    lines = table(("domain", "before", "after GRPO", "after SFT"), rows)
    return "\n".join(["# Both trainers learn", "", intro, "", *lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.out.write_text(page(options.seeds, choose(True)), encoding="utf-8")
