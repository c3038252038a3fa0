"""From a domain to what TRL trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlforget.domains import Domain, Example
from rlforget.domains.batches import IGNORED

RewardFunction = Callable[..., list[float]]


def prompt_rows(examples: Sequence[Example]) -> Any:
    """Build GRPO's dataset: a prompt, and the index by which the reward finds its example.

    Returns:
        `datasets.Dataset` with the columns `prompt` and `index`.
    """
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [e.prompt for e in examples], "index": list(range(len(examples)))})


def completion_rows(examples: Sequence[Example], tokenizer: Any) -> Any:
    """Build SFT's dataset: prompt, gold answer and end token as tokens, of which the prompt's are not scored.

    Prompt and answer are encoded apart, so the model learns from the very tokens that it is sampled from later: an
    encoding of the joined text may merge characters across the border.

    Returns:
        `datasets.Dataset` with the columns `input_ids` and `labels`.
    """
    from datasets import Dataset

    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    answers = tokenizer([e.answer for e in examples], add_special_tokens=False)["input_ids"]
    ends = [tokenizer.eos_token_id]
    return Dataset.from_dict(
        {
            "input_ids": [list(p) + list(a) + ends for p, a in zip(prompts, answers, strict=True)],
            "labels": [[IGNORED] * len(p) + list(a) + ends for p, a in zip(prompts, answers, strict=True)],
        }
    )


def reward_function(domain: Domain, examples: Sequence[Example], tokenizer: Any) -> RewardFunction:
    """Build TRL's reward function from a domain's checked reward.

    Completions are decoded from their tokens without the end token and with everything else, as they are when a
    domain is evaluated; TRL's own text lacks every special token, padding in the middle included.
    """

    def reward(*, completion_ids: Sequence[Sequence[int]], index: Sequence[int], **_: Any) -> list[float]:
        """Score one completion for each entry of `index`; raises RewardError."""
        end = tokenizer.eos_token_id
        texts = tokenizer.batch_decode([[token for token in ids if token != end] for ids in completion_ids])
        return [domain.checked_reward(examples[i], text) for i, text in zip(index, texts, strict=True)]

    return reward
