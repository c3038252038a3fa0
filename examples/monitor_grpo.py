"""Fine-tune a checkpoint with TRL's GRPOTrainer, stop when math has moved too far, and commit what was learned.

python examples/monitor_grpo.py CHECKPOINT HISTORY [STEPS]     (rlforget init CHECKPOINT -H HISTORY, first)
"""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import rlforget as rf


def main(checkpoint: str, history: str, steps: int = 40) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    writing = rf.domains.get("writing")
    asked = {example.prompt: example for example in writing.examples(16 * steps)}

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return [writing.reward(asked[prompt], text) for prompt, text in zip(prompts, completions, strict=True)]

    arguments = GRPOConfig(
        output_dir="runs/monitor_grpo",
        max_steps=steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=writing.max_new_tokens,
        learning_rate=1e-3,
        report_to="none",
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": prompt} for prompt in asked])
    trainer = GRPOTrainer(model, reward, args=arguments, train_dataset=rows, processing_class=tokenizer)
    monitor = rf.ForgettingMonitor(
        protect=["math"],
        every=5,
        evaluate=["math", "writing"],
        warn_at=0.5,
        stop=True,
        history=history,
        domain="writing",
    ).attach(trainer)
    trainer.train()
    first, last = monitor.tracker.measured[0], monitor.tracker.measured[-1]
    for name in last.rewards:
        print(f"{name}: {first.rewards[name].mean:.3f} -> {last.rewards[name].mean:.3f} at step {last.step}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
