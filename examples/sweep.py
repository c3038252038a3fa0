"""How many coordinates are worth putting back? Rewards of two domains over a sweep of fractions, live and undone.

python examples/sweep.py checkpoints/math checkpoints/writing --restore math --protect writing
"""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", help="checkpoint folder of the stage that was good at the domain to restore")
    parser.add_argument("after", help="checkpoint folder of the stage that lost it")
    parser.add_argument("--restore", required=True, help="domain that lost")
    parser.add_argument("--protect", required=True, help="domain that is to stay")
    parser.add_argument("--samples", type=int, default=256, help="completions a domain for the conflict subspace")
    parser.add_argument("--prompts", type=int, default=256, help="prompts an evaluation")
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.after)
    tokenizer = AutoTokenizer.from_pretrained(options.after)
    delta = rf.diff(options.before, model)
    subspace = rf.conflict_subspace(
        model, delta, restore=[options.restore], protect=[options.protect], samples=options.samples
    )
    conflict = rf.conflict(delta, subspace=subspace)

    def report(label: str) -> None:
        domains = (rf.domains.get(name) for name in (options.restore, options.protect))
        scores = (rf.domains.evaluate(model, tokenizer, domain, count=options.prompts) for domain in domains)
        print(f"{label:>16s}", *(f"{score.mean:.3f} ± {score.stderr:.3f}" for score in scores), sep="   ")

    print(f"{'put back':>16s}   {options.restore:13s}   {options.protect}")
    report("nothing")
    for fraction in (0.001, 0.005, 0.02, 0.05):
        with rf.rollback(model, delta, conflict.top(fraction=fraction)):
            report(f"{fraction:.1%} of all")
    with rf.rollback(model, delta, subspace):
        report("dense correction")


if __name__ == "__main__":
    main()
