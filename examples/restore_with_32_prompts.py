"""Give a model back a skill that a later fine-tune cost it, with 32 prompts and no training.

python examples/restore_with_32_prompts.py checkpoints/math checkpoints/writing checkpoints/restored
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf

LOST, KEPT = "math", "writing"


def main(before: str, now: str, out: str, prompts: str = "32") -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(now), AutoTokenizer.from_pretrained(now)
    delta = rf.diff(before, model)

    def rewards() -> str:
        scores = {name: rf.domains.evaluate(model, tokenizer, rf.domains.get(name), count=64) for name in (LOST, KEPT)}
        return ", ".join(f"{name} {score.mean:.3f} ± {score.stderr:.3f}" for name, score in scores.items())

    print(f"now:      {rewards()}")
    # The model writes the completions itself; nothing is labelled. As many prompts protect the newer skill.
    subspace = rf.conflict_subspace(model, delta, restore=[LOST], protect=[KEPT], samples=int(prompts))
    rf.rollback(model, delta, subspace)
    print(f"restored: {rewards()}")
    rf.save_checkpoint(out, model, like=now)


if __name__ == "__main__":
    main(*sys.argv[1:])
