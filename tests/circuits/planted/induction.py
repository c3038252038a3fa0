"""The induction task: a small Qwen2 trained to continue repeated random tokens, and pairs that break the repetition.

A prompt is a start token and a pattern of 6 to 20 random tokens, repeated to 40 tokens; the answer is the pattern's
next token. Two layers can do this in one way: a previous-token head in layer 0 notes beside each token what stood
before it, and an induction head in layer 1 attends to where the last token was noted and copies what stands there.

The period varies, because with a fixed one a head can look back a fixed distance instead.

Trained weights are kept beside this file in float16, since which head does what follows the last bits of the machine
that trains. `make induction` trains them again (15 seconds of one core) and prints what the heads do. The seed is one
at which two heads share the previous token; of the ten seeds 3 to 12, eight had the largest effect of all (on the
log-probability difference) at such a head.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlforget.circuits import Pair, Task

LAYERS, HEADS = 2, 4
TOKENS, START = 32, 0  # tokens 1 to 32 are the pattern's
LENGTH = 40  # of a prompt after its start token
PERIODS = (6, 20)
WEIGHTS = Path(__file__).with_name("induction.safetensors")
KEPT_SEED = 7

Kind = Literal["broken", "traded"]


def build(seed: int = 0) -> Any:
    """Build the model with random weights, float32; eager attention, whose weights can be read."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=TOKENS + 1,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        attn_implementation="eager",
        pad_token_id=START,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def train(seed: int = 0, *, steps: int = 500) -> Any:
    """Train on 32 prompts a step, on every token after the pattern's first round."""
    model = build(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50, 4 * (steps - step) / steps)
    )
    for _ in range(steps):
        patterns = torch.randint(1, TOKENS + 1, (32, PERIODS[1]), generator=generator)
        periods = torch.randint(PERIODS[0], PERIODS[1] + 1, (32, 1), generator=generator)
        ids = repeated(patterns, periods)
        labels = ids.masked_fill(torch.arange(LENGTH + 1) <= periods, -100)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def load() -> Any:
    """Return the trained model, float32, in evaluation mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def repeated(patterns: Tensor, periods: Tensor) -> Tensor:
    """Return the start token and LENGTH tokens of each pattern, from [n, 20] patterns and [n, 1] periods."""
    ids = patterns.gather(1, torch.arange(LENGTH)[None] % periods)
    return torch.cat([torch.full((len(ids), 1), START), ids], dim=1)


def task(kind: Kind, *, count: int = 128, seed: int = 0) -> Task:
    """Draw pairs; all tokens of a pattern differ, so that what follows the last one is settled.

    Args:
        kind: The counterfactual, which ends in the same token. `broken`: random tokens, nothing to go by; the
            distractor is another token of the pattern. `traded`: the last token and another one of the pattern change
            places throughout but at the end; the distractor is what then follows the last token.
        count: Number of pairs.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(count):
        pattern = torch.randperm(TOKENS, generator=generator)[: PERIODS[1]] + 1
        period = int(torch.randint(PERIODS[0], PERIODS[1] + 1, (), generator=generator))
        clean = repeated(pattern[None], torch.tensor([[period]]))[0]
        last = (LENGTH - 1) % period
        # Neither the last token, nor the one before it or after it.
        other = (last + 2 + int(torch.randint(period - 3, (), generator=generator))) % period
        if kind == "broken":
            changed = torch.randint(1, TOKENS + 1, clean.shape, generator=generator)
            changed[0] = START
        else:
            here, there = clean == pattern[last], clean == pattern[other]
            changed = torch.where(here, pattern[other], torch.where(there, pattern[last], clean))
        changed[-1] = clean[-1]
        target, distractor = int(pattern[(last + 1) % period]), int(pattern[(other + 1) % period])
        pairs.append(Pair(clean.tolist(), changed.tolist(), [target], [distractor]))
    return Task(f"induction/{kind}", pairs)


@torch.no_grad()
def previous_token_share(model: Any, pairs: Task) -> Tensor:
    """Return which share of its attention each head gives to the token just before, [layers, heads]."""
    ids = torch.tensor([pair.clean for pair in pairs.pairs])
    layers = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    return torch.stack([layer.diagonal(-1, 2, 3)[..., 5:].mean((0, 2)) for layer in layers])


def _main(seeds: list[int]) -> None:
    from safetensors.torch import save_file

    from .ablations import answers, effects, tokens

    torch.set_printoptions(precision=2, sci_mode=False)
    for seed in seeds:
        model = train(seed)
        pairs = task("broken")
        share = (answers(model, pairs) == tokens(pairs)["target"]).float().mean()
        print(f"seed {seed}: {share:.1%} right")
        print("attention to the previous token", previous_token_share(model, pairs), sep="\n")
        for metric in ("log_prob_difference", "log_prob"):
            print(f"effect on {metric}", effects(model, pairs, "resample", HEADS, metric)[1], sep="\n", flush=True)
        if seed == KEPT_SEED:
            save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    _main([int(seed) for seed in sys.argv[1:]] or [KEPT_SEED])
