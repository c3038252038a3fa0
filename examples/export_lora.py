"""Ship a fine-tune as a LoRA adapter: find the smallest rank that keeps enough of it, write it, load it with PEFT.

python examples/export_lora.py checkpoints/math checkpoints/writing adapter 0.9
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import rlforget as rf


def main(before: str, after: str, out: str, enough: str = "0.9") -> None:
    delta = rf.diff(before, after)
    for rank in (4, 8, 16, 32, 64, 128):
        # Norms, embeddings and biases are in no low-rank matrix: save_rest keeps them whole.
        found = rf.export_lora(delta, out, rank=rank, base=before, save_rest=True, dry_run=True)
        print(f"rank {rank:3}: {found.kept:6.1%} of the change's energy, relative error {found.error:.3f}")
        if found.kept >= float(enough):
            break
    rf.export_lora(delta, out, rank=rank, base=before, save_rest=True)

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(before), out)
    tuned = AutoModelForCausalLM.from_pretrained(after)
    tokens = torch.arange(2, 26).reshape(1, -1)
    with torch.no_grad():
        agree = adapted(tokens).logits.argmax(-1) == tuned(tokens).logits.argmax(-1)
    print(f"{int(agree.sum())} of {agree.numel()} next tokens as the fine-tuned model has them")


if __name__ == "__main__":
    main(*sys.argv[1:])
