"""A training loop of your own that commits its model as it goes: every stage comes back bit for bit, and costs a delta.

python examples/commit_from_a_loop.py checkpoints/math history
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlforget as rf


def main(start: str, folder: str, steps: str = "20") -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    history = rf.History.init(folder, start)
    examples = rf.domains.get("math").examples(8 * int(steps), seed=0)

    for step in range(1, int(steps) + 1):
        texts = [example.prompt + example.answer for example in examples[8 * (step - 1) : 8 * step]]
        batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % (int(steps) // 2) == 0:
            stage = history.commit(model, name=f"step-{step}", domain="math", metrics={"loss": loss.item()})
            print(
                f"committed {stage.name}: {history.delta(f'{stage.name}~1', stage.name).changed:,} coordinates changed"
            )

    for stage in history.log():
        print(f"{stage.id[:8]} {stage.name}, loss {stage.metrics['loss']:.3f}")
    rf.apply(model, history.delta("HEAD", "base"))  # back to where it began, in memory
    assert not rf.diff(start, model).changed


if __name__ == "__main__":
    main(*sys.argv[1:])
