"""Results of a demo, made in a moment: real deltas of small made-up weights, and made-up rewards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from rlforget.delta import Delta, diff, overlap
from rlforget.experiments.repairs import COORDINATE_RULES, Repair
from rlforget.experiments.settings import EARLIER, FULL, SEQUENCE
from rlforget.experiments.summary import summarise

Tensors = dict[str, torch.Tensor]

_BASE = {"code": 0.41, "math": 0.30, "qa": 0.52, "writing": 0.36}
_AFTER = {
    "code": {"code": 0.99, "math": 0.33, "qa": 0.50, "writing": 0.35},
    "math": {"code": 0.98, "math": 0.97, "qa": 0.47, "writing": 0.33},
    "qa": {"code": 0.95, "math": 0.90, "qa": 0.86, "writing": 0.31},
    "writing": {"code": 0.88, "math": 0.67, "qa": 0.81, "writing": 0.58},
}
# Share of the loss regained and of the gain kept, by rule, at 5% of the coordinates.
_REPAIRS = {
    "dense subspace": (0.96, 0.99),
    "random subspace": (0.01, 1.00),
    "fisher": (0.90, 0.91),
    "two_fisher": (0.86, 0.93),
    "subspace": (0.97, 0.95),
    "magnitude": (0.28, 0.86),
    "random": (0.14, 1.00),
    "opposed": (0.55, 0.90),
    "taylor": (0.89, 0.92),
    "refresh": (0.83, 0.97),
}


def made_results(seeds: int = 2) -> dict[str, Any]:
    """What `run_demo` would return."""
    runs = [_run(seed) for seed in range(seeds)]
    return {
        "format": "rlforget-demo",
        "version": 1,
        "fast": False,
        "settings": asdict(FULL),
        "versions": {"rlforget": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "machine": "Linux x86_64, Python 3.11.2",
        "runs": runs,
        "summary": summarise(runs),
    }


def _run(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    weights = _weights(draw)
    stages: list[dict[str, Any]] = [{"name": "base", "rewards": _jittered(_BASE, draw), "weights": f"base of {seed}"}]
    deltas: list[Delta] = []
    for position, name in enumerate(SEQUENCE):
        tuned = {key: _tuned(tensor, draw, 0.1 * (position + 1)) for key, tensor in weights.items()}
        deltas.append(diff(weights, tuned))
        weights = tuned
        told = {"weights": deltas[-1].fingerprint_after, "config": f"method grpo, steps {10 * position}"}
        after = {"name": name, "rewards": _jittered(_AFTER[name], draw), **told}
        stages.append({**after, "delta": deltas[-1].stats().to_dict()})
    then, now = stages[len(EARLIER)]["rewards"], stages[-1]["rewards"]
    pairs = [(i, j) for j in range(len(deltas)) for i in range(j)]
    return {
        "seed": seed,
        "stages": stages,
        "overlaps": [
            {"first": SEQUENCE[i], "second": SEQUENCE[j], **overlap(deltas[i], deltas[j]).to_dict()} for i, j in pairs
        ],
        "lost": {name: then[name] - now[name] for name in EARLIER},
        "repairs": [_repair(rule, fraction, then, now, draw) for rule, fraction in _rules()],
        "sft_and_rl": _sft_and_rl(draw),
        "seconds": 200.0 + seed,
    }


def _rules() -> list[tuple[str, float | None]]:
    return [("dense subspace", None), ("random subspace", None), *COORDINATE_RULES, ("refresh", None)]


def _weights(draw: torch.Generator) -> Tensors:
    shapes = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,)}
    for layer in range(4):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (16, 16) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (48, 16) for part in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (16, 48), f"{prefix}.input_layernorm.weight": (16,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _tuned(tensor: torch.Tensor, draw: torch.Generator, size: float) -> torch.Tensor:
    """Change some coordinates, more of them in the first rows, so that the stages overlap beyond chance."""
    chosen = torch.rand(tensor.shape, generator=draw) < torch.linspace(0.9, 0.3, tensor.shape[0]).view(
        -1, *[1] * (tensor.dim() - 1)
    )
    return torch.where(chosen, tensor + size * torch.randn(tensor.shape, generator=draw), tensor)


def _jittered(rewards: dict[str, float], draw: torch.Generator) -> dict[str, float]:
    return {name: min(1.0, max(0.0, mean + _noise(draw, 0.015))) for name, mean in rewards.items()}


def _noise(draw: torch.Generator, size: float) -> float:
    return size * float(torch.randn((), generator=draw))


def _repair(
    rule: str, fraction: float | None, then: dict[str, float], now: dict[str, float], draw: torch.Generator
) -> dict[str, Any]:
    regained, kept = _REPAIRS[rule]
    short = 1.0 if fraction is None else (fraction / 0.05) ** 0.12  # fewer coordinates do less
    regained, kept = regained * short + _noise(draw, 0.02), kept + 0.05 * (1 - short) + _noise(draw, 0.015)
    rewards = {
        name: now[name] + (regained if name in EARLIER else 1 - kept) * (then[name] - now[name]) for name in SEQUENCE
    }
    norm, errors = 0.08 if fraction is None else 4 * fraction, dict.fromkeys(SEQUENCE, 0.01)
    return Repair(rule, fraction, rewards, regained, kept, norm, errors, 0.03, 0.02).to_dict()


def _sft_and_rl(draw: torch.Generator) -> dict[str, Any]:
    base = _jittered(_BASE, draw)
    rl = {"code": 0.40, "math": 0.28, "qa": 0.50, "writing": 0.55}
    sft = {"code": 0.12, "math": 0.15, "qa": 0.36, "writing": 0.56}
    return {
        "target": "writing",
        "start": {"rewards": base},
        "grpo": _fine_tune(base, _jittered(rl, draw), 150, (0.02, 0.11), (0.09, 0.03, 0.13, 0.3), draw),
        "sft": _fine_tune(base, _jittered(sft, draw), 96, (0.01, 0.06), (0.94, 0.43, 0.23, 0.5), draw),
    }


def _fine_tune(
    base: dict[str, float],
    after: dict[str, float],
    steps: int,
    sparsity: tuple[float, float],
    kl: tuple[float, float, float, float],
    draw: torch.Generator,
) -> dict[str, Any]:
    others = [name for name in base if name != "writing"]
    return {
        "steps": steps,
        "seconds": 20.0,
        "rewards": after,
        "forgotten": sum(base[name] - after[name] for name in others) / len(others),
        "sparsity": dict(zip(("float32", "bfloat16"), sparsity, strict=True)),
        "kl_to_start": {name: abs(mean + _noise(draw, 0.02)) for name, mean in zip(SEQUENCE[:-1], kl, strict=False)},
    }
