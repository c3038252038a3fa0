"""What would the model score without its last fine-tune in some layers? Roll back for an evaluation, and only for it.

python examples/guarded_evaluation.py checkpoints/math checkpoints/writing math
"""

from __future__ import annotations

import re
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf
from rlforget.interference import Coordinates


def main(before: str, now: str, domain: str, count: str = "128") -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(now), AutoTokenizer.from_pretrained(now)
    delta = rf.diff(before, model)

    def score(label: str) -> None:
        found = rf.domains.evaluate(model, tokenizer, rf.domains.get(domain), count=int(count))
        print(f"{label:24} {found.mean:.3f} ± {found.stderr:.3f}")

    score("as it is")
    layers = {match[1] for name in delta if (match := re.search(r"layers\.(\d+)\.", name))}
    for layer in sorted(layers, key=int):
        inside = {name: change.indices for name, change in delta.items() if f"layers.{layer}." in name}
        # Every bit is as it was when the block ends, also by an exception or Ctrl-C.
        with rf.rollback(model, delta, Coordinates(inside)):
            score(f"layer {layer} rolled back")
    assert not rf.diff(now, model).changed


if __name__ == "__main__":
    main(*sys.argv[1:])
