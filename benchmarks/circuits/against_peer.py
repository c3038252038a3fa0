"""`find(method="eap-ig")` beside EAP-IG through TransformerLens and beside a training step; prints JSON.

Run by `test_circuits.py` in a process of its own, with the Python that has TransformerLens:
`python -m benchmarks.circuits.against_peer gpt2`. It exits with code 3 where that is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.circuits.cost import best_seconds, with_peak_bytes
from benchmarks.circuits.edge_peer import EdgePeer
from benchmarks.circuits.peer import Peer
from benchmarks.circuits.shapes import SHAPES, Prompts, build, prompts, tokenizer

NO_PEER = 3
PEERS: dict[str, Callable[[Any, Any], Any]] = {
    "edges": EdgePeer,  # as published
    "nodes": Peer,  # as its authors do it where only nodes are asked for
    "lean nodes": partial(Peer, result=False, frozen=True),  # with what one would do to spare time and memory
}


def task_of(drawn: Prompts) -> Any:
    """Return the pairs as a task."""
    from rlforget.circuits.task import Pair, Task

    rows = zip(drawn.clean, drawn.counterfactual, drawn.targets, drawn.distractors, strict=True)
    return Task("random prompts", [Pair(clean, other, [target], [wrong]) for clean, other, target, wrong in rows])


def compare(shape: str, steps: int, rounds: int) -> dict[str, Any]:
    """Measure all on one model and one batch.

    Returns:
        `seconds` and `bytes` (peak of tensors beyond the weights) of each contender, and `correlation` (Pearson, of
        the head scores with those of each peer; the least).
    """
    from rlforget.circuits import find

    model, drawn = build(shape), prompts(shape)
    names, task = tokenizer(shape), task_of(drawn)
    peers = {name: make(model, names) for name, make in PEERS.items()}

    def ours() -> torch.Tensor:
        # The metric is the difference of log-probabilities, which is that of logits.
        batch = len(drawn.clean)
        return find(model, task, "eap-ig", tokenizer=names, batch_size=batch, steps=steps, position_sum="signed").scores

    contenders: dict[str, Callable[[], Any]] = {"ours": ours, "training step": lambda: train(model, drawn)}
    contenders |= {name: lambda peer=peer: peer.eap_ig(drawn, steps) for name, peer in peers.items()}
    results: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, function in contenders.items():  # which warms up, too
        results[name], sizes[name] = with_peak_bytes(function)
    scores = torch.stack([results[name].flatten() for name in ("ours", *PEERS)])
    return {
        "shape": shape,
        "pairs": SHAPES[shape].pairs,
        "tokens": SHAPES[shape].length,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "correlation": float(torch.corrcoef(scores)[0].min()),
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "bytes": sizes,
        "seconds": best_seconds(contenders, rounds),
    }


def train(model: Any, drawn: Prompts) -> None:
    """One training step less its optimizer: forward, loss, gradients of all weights, which are then dropped."""
    ids = torch.tensor(drawn.clean)
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)


def main() -> None:
    """Print the measurement as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if importlib.util.find_spec("transformer_lens") is None:
        sys.exit(NO_PEER)
    sys.stdout.write(json.dumps(compare(options.shape, options.steps, options.rounds)) + "\n")


if __name__ == "__main__":
    main()
