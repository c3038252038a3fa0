"""Batches, completions and rewards of a real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlforget import domains
from rlforget.domains.batches import IGNORED
from rlforget.domains.miniature.pretrain import build_model
from rlforget.domains.miniature.tokenizer import build_tokenizer
from rlforget.domains.sampling import completion_texts, special_tokens
from rlforget.errors import ConfigError


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(0).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def one_batch(tokenizer: Any, count: int = 32) -> dict[str, Any]:
    return next(domains.prompt_batches(domains.get("code"), tokenizer, count=count))


def test_prompts_are_left_padded_and_decode_to_the_text(tokenizer: Any) -> None:
    batch = one_batch(tokenizer)
    texts = [e.prompt for e in domains.get("code").examples(32)]
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], texts, strict=True):
        assert tokenizer.decode(ids[mask == 1]) == text
        assert mask.tolist() == sorted(mask.tolist())
    assert batch["max_new_tokens"] == 5


def test_completion_batches_score_the_answer_and_the_end_token(tokenizer: Any) -> None:
    domain = domains.get("writing")
    batches = list(domains.completion_batches(domain, tokenizer, count=10, batch_size=4))
    assert [len(b["input_ids"]) for b in batches] == [4, 4, 2]
    labels = torch.cat([b["labels"].flatten() for b in batches])
    kept = labels[labels != IGNORED].tolist()
    wanted = [t for e in domain.examples(10) for t in [*tokenizer(e.answer)["input_ids"], tokenizer.eos_token_id]]
    assert kept == wanted


def test_sampling_is_seeded_and_leaves_the_random_state_alone(model: Any, tokenizer: Any) -> None:
    batch = one_batch(tokenizer)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    state = torch.get_rng_state()
    first, again, other = (domains.sample(model, batch, seed=seed, **ends) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_labels_are_the_completion_up_to_its_first_end_token(model: Any, tokenizer: Any) -> None:
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    batch = one_batch(tokenizer, 256)
    sampled = domains.sample(model, batch, seed=0, **ends)
    prompt_length = batch["input_ids"].shape[1]
    ended = 0
    for ids, labels, mask in zip(sampled["input_ids"], sampled["labels"], sampled["attention_mask"], strict=True):
        assert (labels[:prompt_length] == IGNORED).all()
        completion = ids[prompt_length:].tolist()
        length = (
            completion.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in completion else len(completion)
        )
        ended += length < len(completion)
        assert labels[prompt_length : prompt_length + length].tolist() == completion[:length]
        assert (labels[prompt_length + length :] == IGNORED).all()
        assert mask[prompt_length:].sum() == length
    assert ended  # an untrained model ends some completions early


def test_padding_changes_no_greedy_completion(model: Any, tokenizer: Any) -> None:
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    mixed = tokenizer(["M1+2+3+4=", "Q3A7C1B9D=7"], padding=True, return_tensors="pt")
    together = domains.sample(model, {**mixed, "max_new_tokens": 5}, seed=0, greedy=True, **ends)
    alone = tokenizer(["M1+2+3+4="], return_tensors="pt")
    single = domains.sample(model, {**alone, "max_new_tokens": 5}, seed=0, greedy=True, **ends)
    assert (
        completion_texts(tokenizer, together, [ends["eos_token_id"]])[0]
        == completion_texts(tokenizer, single, [ends["eos_token_id"]])[0]
    )


def test_evaluation_is_the_mean_reward_with_its_standard_error(model: Any, tokenizer: Any) -> None:
    class Half(domains.Domain):
        name, max_new_tokens = "half", 2

        def examples(self, count: int, *, seed: int = 0, split: domains.Split = "train") -> list[domains.Example]:
            return [domains.Example(f"M{i % 10}+1+1+1=", str(i % 2)) for i in range(count)]

        def reward(self, example: domains.Example, completion: str) -> float:
            return float(example.answer)

    score = domains.evaluate(model, tokenizer, Half(), count=100, batch_size=32)
    assert score.mean == 0.5
    assert score.count == 100
    assert score.stderr == pytest.approx((0.25 * 100 / 99 / 100) ** 0.5)


def test_every_end_token_of_the_model_ends_a_completion(model: Any, tokenizer: Any) -> None:
    batch = one_batch(tokenizer, 256)
    several = [tokenizer.eos_token_id, 5, 6]
    sampled = domains.sample(model, batch, seed=0, pad_token_id=0, eos_token_id=several)
    start = batch["input_ids"].shape[1]
    for ids, labels in zip(sampled["input_ids"], sampled["labels"], strict=True):
        completion = ids[start:].tolist()
        length = next((i + 1 for i, token in enumerate(completion) if token in several), len(completion))
        assert labels[start:].tolist() == completion[:length] + [IGNORED] * (len(completion) - length)


def test_end_tokens_are_the_tokenizers_and_the_generation_configs(model: Any, tokenizer: Any) -> None:
    from types import SimpleNamespace

    chat = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[7, 1]), config=SimpleNamespace(eos_token_id=7)
    )
    assert special_tokens(chat, tokenizer) == (tokenizer.pad_token_id, [1, 7])
    assert special_tokens(model) == (0, [1])
    assert special_tokens(SimpleNamespace()) == (0, [])


def test_no_prompt_at_all_is_a_named_fault(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="at least 1 prompt"):
        domains.evaluate(model, tokenizer, domains.get("math"), count=0)
