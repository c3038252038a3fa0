"""Completions to take gradients of: from a domain or from batches, scored by the model itself."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlforget import domains
from rlforget.counting import counted
from rlforget.domains.batches import IGNORED
from rlforget.domains.sampling import evaluating, special_tokens
from rlforget.errors import ConfigError, EmptyDomainError, NonFiniteError, ShortDomainError
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import here, is_shard

Batch = Mapping[str, Any]
Batches = domains.Domain | str | Iterable[Batch]

_BYTES_AT_ONCE = 1 << 28  # of one float32 number a token of the vocabulary and scored position


def collect(model: Any, batches: Batches, *, samples: int, seed: int = 0, tokenizer: Any = None) -> list[Batch]:
    """Return batches that hold up to `samples` prompts or completions in all.

    Args:
        model: Tells where its tokenizer is, where `batches` is a domain and `tokenizer` is None.
        batches: A domain, its name, or an iterable of dicts with `input_ids` [B, T], `attention_mask` [B, T] and,
            where the completions are given, `labels` [B, T] (−100 on what is not scored).
        samples: How many rows to take.
        seed: Seed of a domain's prompts.
        tokenizer: Encodes a domain's prompts.

    Raises:
        EmptyDomainError: There is not a single row.
        ShortDomainError: A domain has fewer prompts than `samples`.
    """
    if samples < 1:
        raise ConfigError("samples", expected="at least 1", found=str(samples), fix="Ask for one sample or more.")
    source: Iterable[Batch]
    if isinstance(batches, str | domains.Domain):
        domain = domains.get(batches)
        size = domain.size()
        if size is not None and 0 < size < samples:
            raise ShortDomainError(
                f"domain {domain.name!r}",
                expected=f"{samples} prompts, as asked for",
                found=f"{size} in its split for training",
                fix=f"Add prompts, or ask for {size} samples at most.",
            )
        source = domains.prompt_batches(domain, tokenizer_of(model, tokenizer), count=samples, seed=seed)
    else:
        source = batches
    taken = list(_take(source, samples))
    if not taken:
        raise EmptyDomainError(
            "the batches",
            expected="at least one prompt or completion",
            found="none",
            fix="Pass a domain or batches with rows; an exhausted generator has none left.",
        )
    return taken


def check_same(batches: Sequence[Batch], *settings: object) -> None:
    """Hold that every rank has the same batches and settings: ranks that hold shards go through samples together.

    Raises:
        ConfigError: They have not.
    """
    seen = hashlib.sha256(repr(settings).encode())
    for batch in batches:
        for name in sorted(batch):
            value = batch[name]
            seen.update(f"{name} {tuple(value.shape) if isinstance(value, Tensor) else value}".encode())
            if isinstance(value, Tensor):
                seen.update(value.cpu().contiguous().numpy().tobytes())
    told = gathered(seen.hexdigest())
    others = [place for place, one in enumerate(told) if one != told[0]]
    if others:
        raise ConfigError(
            "batches and settings",
            expected="the same on every rank, since the model is spread over them",
            found=f"others on rank {others[0]} than on rank 0",
            fix="Give all ranks one domain, seed and list of batches: without a sampler that deals them out.",
        )


def completed(
    model: Any, batches: list[Batch], *, seed: int, tokenizer: Any = None, only: Collection[int] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield each batch on the model's device, with completions sampled from the model where it has no `labels`.

    Every batch draws from a seed of its own, so batches may be completed in any order, or those at positions `only`.
    """
    device = next(model.parameters()).device
    chosen = [(at, batch) for at, batch in enumerate(batches) if only is None or at in only]
    for position, batch in counted("completions", chosen, size=lambda one: len(one[1]["input_ids"])):
        if "labels" not in batch:
            pad, end = special_tokens(model, tokenizer)
            draw = seed * 1_000_003 + position
            if position == 0:
                _check_samplable(model, batch)
            batch = domains.sample(model, batch, seed=draw, pad_token_id=pad, eos_token_id=end)
        yield {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}


def completion_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Score completions: log π(completion | prompt), summed over the scored tokens.

    Args:
        model: A causal language model whose output has `.logits` [B, T, vocabulary].
        batch: `input_ids`, `attention_mask`, `labels` [B, T] int64, padded on either side.

    Returns:
        [B] float32 (float64 for a float64 model), differentiable.
    """
    return summed(scored_log_probs(model, batch), batch)


def summed(log_probs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Sum a number a token over the scored tokens of each completion.

    Args:
        log_probs: [B, S, vocabulary], at the last S positions but one, as `scored_log_probs` returns; or their
            derivative.
        batch: With `labels` [B, T].

    Returns:
        [B], of the dtype of `log_probs`.
    """
    labels = scored_labels(batch)
    tokens = log_probs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)  # [B, S]
    return torch.where(labels != IGNORED, tokens, 0.0).sum(1)


def scored_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the labels that `scored_log_probs` predicts, [B, S] int64: from the batch's first scored token on."""
    return batch["labels"][:, 1:][:, _first_scored(batch) :]


def scored_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return `next_token_log_probs` from the batch's first scored token on: [B, S, vocabulary].

    Prompts are not turned to logits, where the model can do without: with a large vocabulary those are the largest
    tensors there are.
    """
    return _log_probs(model, batch, _first_scored(batch))


def next_token_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return log π(token | what stands before it) of every token at each position but the last.

    Args:
        model: A causal language model whose output has `.logits` [B, T, vocabulary].
        batch: `input_ids`, `attention_mask` [B, T], padded on either side.

    Returns:
        [B, T - 1, vocabulary] float32 (float64 for a float64 model), differentiable.
    """
    return _log_probs(model, batch, 0)


def _log_probs(model: Any, batch: Mapping[str, Tensor], start: int) -> Tensor:
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp_min(0)  # padding counts for nothing, as in generation
    kept = mask.shape[1] - start
    extra = accepted(model.forward, {"position_ids": positions, "use_cache": False, "logits_to_keep": kept})
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, **extra).logits[:, -kept:-1]
    precise: Tensor = logits if logits.dtype == torch.float64 else logits.float()
    return precise.log_softmax(-1)


def _first_scored(batch: Mapping[str, Tensor]) -> int:
    """Return how many positions stand before the first whose next token is scored; 0 where none is."""
    scored = (batch["labels"][:, 1:] != IGNORED).any(0)  # [T - 1]
    return int(scored.int().argmax()) if scored.numel() else 0


def pieces(model: Any, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split a batch so that a number for each scored position and token of the vocabulary fits in bounded memory."""
    size = scored_labels(batch).shape[1] * _vocabulary(model)
    rows = max(1, _BYTES_AT_ONCE // (4 * max(size, 1)))
    for start in range(0, batch["input_ids"].shape[0], rows):
        yield {name: value[start : start + rows] for name, value in batch.items()}


def check_finite(model: Any, values: Tensor, what: str) -> None:
    """Hold that what was computed from a model are numbers; from one that is spread over ranks, the same on each.

    Raises:
        NonFiniteError: One is NaN or infinite; the message names the parameter that is to blame, where one is.
    """
    if bool(values.isfinite().all()):
        return
    blamed = next((name for name, p in model.named_parameters() if not bool(here(p).isfinite().all())), None)
    if any(map(is_shard, model.parameters())):  # each rank looked at what it holds
        blamed = next((name for name in gathered(blamed) if name is not None), None)
    if blamed is not None:
        what, found = f"parameter {blamed!r}", "NaN or Inf in it"
    else:
        found = f"NaN or Inf, from finite weights in {next(model.parameters()).dtype}"
    fix = "Mend the weights; where they are sound, load the model in a dtype of wider range, bfloat16 or float32."
    raise NonFiniteError(what, expected="finite numbers", found=found, fix=fix)


@torch.no_grad()
def _check_samplable(model: Any, batch: Batch) -> None:
    """A draw from NaN is a fault without a name, and on a GPU the end of the process."""
    mask = batch["attention_mask"][:1].to(next(model.parameters()).device)
    ids = batch["input_ids"][:1].to(mask.device)
    with evaluating(model):
        check_finite(model, model(input_ids=ids, attention_mask=mask).logits[:, -1].float(), "the model's logits")


def _vocabulary(model: Any) -> int:
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", 1))


def _take(source: Iterable[Batch], samples: int) -> Iterator[Batch]:
    left = samples
    for batch in source:
        rows = min(left, batch["input_ids"].shape[0])
        if rows:
            yield {name: value[:rows] if isinstance(value, Tensor) else value for name, value in batch.items()}
        left -= rows
        if left <= 0:
            return


def tokenizer_of(model: Any, tokenizer: Any) -> Any:
    """Return `tokenizer`, or the one in the folder that the model was loaded from.

    Raises:
        ConfigError: There is neither.
    """
    if tokenizer is not None:
        return tokenizer
    folder = getattr(model.config, "_name_or_path", "")
    if not folder:
        raise ConfigError(
            "tokenizer",
            expected="a tokenizer to encode the domain's prompts",
            found="none, and a model that was not loaded from a folder",
            fix="Pass tokenizer=...",
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of `arguments` that `function` has a parameter for."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return arguments
    names = {p.name for p in parameters}
    return {name: value for name, value in arguments.items() if name in names}
