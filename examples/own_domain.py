"""A skill of your own, from a file of prompts and answers: measure it, and refresh a model that lost it.

python examples/own_domain.py checkpoints/writing sums.jsonl checkpoints/refreshed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf


def write_sums(file: Path) -> None:
    """Write sums of two digits as a domain: a line that says how it is rewarded, then a prompt and an answer a line."""
    first = {"domain": "sums", "reward": "rlforget.domains.rewards:exact_match", "max_new_tokens": 2}
    rows = [
        {"prompt": f"M{a}+{b}=", "answer": str(a + b)[-1], "split": "eval" if (a + b) % 4 == 0 else "train"}
        for a in range(10)
        for b in range(10)
    ]
    file.write_text("\n".join(map(json.dumps, [first, *rows])) + "\n")


def main(now: str, prompts: str, out: str, steps: str = "10") -> None:
    if not Path(prompts).exists():
        write_sums(Path(prompts))
    domain = rf.domains.get(prompts)  # the file's path is a domain's name everywhere, on the command line too
    model, tokenizer = AutoModelForCausalLM.from_pretrained(now), AutoTokenizer.from_pretrained(now)
    print(f"before: {rf.domains.evaluate(model, tokenizer, domain, count=20).mean:.3f}")
    rf.training.refresh(model, tokenizer, domain, steps=int(steps), method="sft", progress=False)
    print(f"after:  {rf.domains.evaluate(model, tokenizer, domain, count=20).mean:.3f}")
    rf.save_checkpoint(out, model, like=now)


if __name__ == "__main__":
    main(*sys.argv[1:])
