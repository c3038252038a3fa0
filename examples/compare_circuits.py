"""Which attention heads does a skill need, and which of them did SFT and RL keep?

python examples/compare_circuits.py checkpoints/base checkpoints/sft checkpoints/grpo --domain science
"""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("sft")
    parser.add_argument("rl")
    parser.add_argument("--domain", default="science")
    parser.add_argument("--pairs", type=int, default=64, help="prompts, each with a counterfactual")
    options = parser.parse_args()

    base, sft, rl = (AutoModelForCausalLM.from_pretrained(path) for path in (options.base, options.sft, options.rl))
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    task = rf.circuits.Task.from_domain(options.domain, count=options.pairs)

    circuit = rf.circuits.find(base, task, tokenizer=tokenizer, size=0.5)
    print("the base needs (layer, head):", *circuit.heads())
    # Retention says little without its chance level and its ceiling: the table has both, and intervals.
    print(rf.circuits.compare(base, {"sft": [sft], "rl": [rl]}, task, tokenizer=tokenizer, size=0.5).table())


if __name__ == "__main__":
    main()
