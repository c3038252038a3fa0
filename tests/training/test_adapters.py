"""LoRA stages: their factors are kept, and an adapter is rolled back as any weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import rlforget as rf
from rlforget import domains
from rlforget.delta import apply
from rlforget.domains import completion_batches, miniature
from rlforget.training import EvaluationConfig, LoraConfig, SequenceConfig, StageConfig, run_sequence, train_stage
from rlforget.training.loading import load_model
from tests.training.toy import Quiet, bits, same_bits, write_domain


def test_factors_merged_into_the_parent_are_the_stage(checkpoint: Path, tmp_path: Path) -> None:
    domain = write_domain(tmp_path / "one.jsonl", "one")
    stages = [
        StageConfig(name="whole", domain=domain, method="sft", steps=2, prompts=4),
        StageConfig(name="adapter", domain=domain, method="sft", steps=3, prompts=4, lora=LoraConfig(rank=2)),
    ]
    config = SequenceConfig(
        model=str(checkpoint), stages=stages, evaluation=EvaluationConfig(count=4), device="cpu", save_every=2
    )
    result = run_sequence(config, tmp_path / "run", progress=Quiet())
    plain, adapted = (stage.folder for stage in result.stages[1:])
    assert not plain.adapter_path.exists()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in adapted.adapter_path.iterdir()}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "log.jsonl", "stages"]
    model, _ = load_model(config)
    apply(model, plain.delta())
    merged = peft.PeftModel.from_pretrained(model, adapted.adapter_path).merge_and_unload()
    assert same_bits(bits(merged), bits(result.model))


@pytest.fixture(scope="module")
def learned() -> tuple[Any, Any]:
    """The miniature after math."""
    model, tokenizer = miniature.load()
    stage = StageConfig(domain="math", method="sft", steps=40, prompts=64, learning_rate=1e-3)
    train_stage(model, tokenizer, stage, seed=0, progress=False)
    return model, tokenizer


def test_an_adapter_and_its_conflict_subspace_are_rolled_back(learned: tuple[Any, Any]) -> None:
    model, tokenizer = learned
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, settings)
    held = bits(model)
    start = {name: value.detach().clone() for name, value in adapted.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for batch in completion_batches(domains.get("writing"), tokenizer, count=128 * 50, batch_size=128):
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def rewards() -> list[float]:
        names = ("math", "writing")
        return [domains.evaluate(adapted, tokenizer, domains.get(name), count=128).mean for name in names]

    delta = rf.diff(start, adapted)
    assert all(".lora_" in name for name, tensor in delta.items() if tensor.changed)
    lost = rewards()
    options: dict[str, Any] = {"restore": ["math"], "protect": ["writing"], "samples": 128, "tokenizer": tokenizer}
    with rf.rollback(adapted, delta, rf.conflict_subspace(adapted, delta, **options)):
        math, writing = rewards()
    assert 1 - lost[0] > 0.1
    assert (math - lost[0]) / (1 - lost[0]) > 0.7
    assert writing > lost[1] - 0.1
    assert rewards() == lost
    rf.revert(adapted, delta)  # all of the adapter
    assert all(torch.equal(adapted.state_dict()[name], value) for name, value in start.items())
    assert same_bits(held, bits(model))
