"""Fine-tune a checkpoint with TRL's SFTTrainer, and see while it trains what that costs a skill it had before.

python examples/monitor_sft.py CHECKPOINT [STEPS]
"""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import rlforget as rf


def main(checkpoint: str, steps: int = 40) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lines = rf.domains.get("writing").examples(16 * steps)
    rows = Dataset.from_list([{"prompt": line.prompt, "completion": line.answer} for line in lines])
    arguments = SFTConfig(
        output_dir="runs/monitor_sft",
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        logging_steps=10,
        report_to="none",  # "wandb", say, and the figures are there too
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
    )
    trainer = SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    rf.ForgettingMonitor(protect=["math"], every=10, log="forgetting.jsonl").attach(trainer)  # the one line
    trainer.train()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
