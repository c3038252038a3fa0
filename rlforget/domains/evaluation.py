"""A model's reward in a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlforget.counting import counted
from rlforget.domains.base import Domain, Example, Split
from rlforget.domains.batches import encode_prompts
from rlforget.domains.sampling import completion_texts, sample, special_tokens
from rlforget.errors import ConfigError


@dataclass(frozen=True)
class Score:
    """A mean reward.

    Attributes:
        mean: Mean reward, in [0, 1].
        stderr: Standard error of the mean over prompts.
        count: Number of prompts.
    """

    mean: float
    stderr: float
    count: int


def evaluate(
    model: Any,
    tokenizer: Any,
    domain: Domain,
    *,
    count: int = 256,
    seed: int = 0,
    split: Split = "eval",
    greedy: bool = False,
    batch_size: int = 256,
) -> Score:
    """Sample one completion for each of `count` prompts and average their rewards.

    Raises:
        ConfigError: `count` is below 1.
        EmptyDomainError: The domain has no example in `split`.
        RewardError: A reward is no number in [0, 1].
    """
    if count < 1:
        raise ConfigError("count", expected="at least 1 prompt", found=str(count), fix="Ask for one prompt or more.")
    examples = domain.examples(count, seed=seed, split=split)
    rewards = rewards_of(model, tokenizer, domain, examples, seed=seed, greedy=greedy, batch_size=batch_size)
    mean = sum(rewards) / len(rewards)
    variance = sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards) - 1)
    return Score(mean, (variance / len(rewards)) ** 0.5, len(rewards))


def rewards_of(
    model: Any,
    tokenizer: Any,
    domain: Domain,
    examples: Sequence[Example],
    *,
    seed: int = 0,
    greedy: bool = False,
    batch_size: int = 256,
) -> list[float]:
    """Sample one completion for each example and return their rewards.

    Raises:
        RewardError: A reward is no number in [0, 1].
    """
    rewards: list[float] = []
    pad, ends = special_tokens(model, tokenizer)
    starts = range(0, len(examples), batch_size)
    for start in counted("prompts", starts, len(examples), size=lambda at: min(batch_size, len(examples) - at)):
        chunk = list(examples[start : start + batch_size])
        completed = sample(
            model,
            encode_prompts(domain, tokenizer, chunk),
            seed=seed + start,
            greedy=greedy,
            pad_token_id=pad,
            eos_token_id=ends,
        )
        texts = completion_texts(tokenizer, completed, ends)
        rewards += [domain.checked_reward(e, text) for e, text in zip(chunk, texts, strict=True)]
    return rewards
