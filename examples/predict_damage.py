"""Before a fine-tune is deployed: what will it cost the skills that nobody trained it for?

python examples/predict_damage.py checkpoints/math checkpoints/writing code math qa
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf

LIMIT = 0.5  # nats a completion


def main(deployed: str, candidate: str, *domains: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(candidate), AutoTokenizer.from_pretrained(candidate)
    delta = rf.diff(deployed, model)
    failed = []
    for name in domains:
        # Forward passes on completions that the deployed model writes: no labels and no rewards.
        found = rf.damage(model, delta, name, points=3, by="layer", samples=64, tokenizer=tokenizer)
        print(f"{name:8} loses {found.total:.3f} ± {found.total_stderr:.3f} nats a completion", end="")
        shares = {layer: part.first + part.row_sum for layer, part in found.parts.items()}  # they add up to the total
        worst = max(shares, key=lambda layer: shares[layer])
        print(f", most of it in {worst} ({shares[worst]:.3f})")
        failed += [name] if found.total - 2 * found.total_stderr > LIMIT else []
    if failed:
        sys.exit(f"held back: {', '.join(failed)} would lose more than {LIMIT} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
