"""A training loop of one's own, watched, with each step bent away from what math depends on.

python examples/monitor_loop.py CHECKPOINT [STEPS]
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf
from rlforget.domains import completion_batches


def main(checkpoint: str, steps: int = 40) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).train()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = completion_batches(rf.domains.get("writing"), tokenizer, count=32 * steps, batch_size=32)
    with rf.Tracker(model, optimizer, protect=["math"], guard="project", every=10, tokenizer=tokenizer) as tracker:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()  # the tracker measures here
            optimizer.zero_grad()
    for figures in tracker.measured:
        kl = figures.divergence["math"]
        print(
            f"step {figures.step:4d}  unchanged {figures.sparsity():.1%}  predicted damage to math "
            f"{figures.damage['math']:.4f} nats  KL {kl.mean:.4f} ± {kl.stderr:.4f}"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
