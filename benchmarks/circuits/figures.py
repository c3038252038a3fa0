"""The figures of docs/circuits.md that the tests hold to their bars, as Markdown tables.

`python -m benchmarks.circuits.figures planted | precision | null`; it takes a minute or a few each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import count

import numpy as np
import torch

from rlforget import domains
from rlforget.circuits import METHODS, Task, exchange, find
from rlforget.circuits.effects import KEEPS
from rlforget.domains import miniature
from rlforget.experiments.markdown import table
from tests.circuits.made_circuits import effects, replicates
from tests.circuits.planted.ablations import auroc
from tests.circuits.planted.models import ALGORITHMS, CASES
from tests.circuits.test_methods import spearman

SEEDS = (0, 1)
DRAWS = 800


def planted() -> list[str]:
    """AUROC of every method on the circuits that are known by construction."""
    rows = []
    models = {(name, seed): ALGORITHMS[name](seed) for name in ALGORITHMS for seed in SEEDS}
    for method in METHODS:
        found: dict[str, list[float]] = {"resample": [], "zero": []}
        worst, draws = (2.0, ""), count()
        for algorithm, case in CASES:
            for seed in SEEDS:
                one = models[algorithm, seed]
                for kind, areas in found.items():
                    task = one.cases[case].task
                    scores = find(one.model, task, method, ablation=kind, batch_size=64, seed=next(draws)).scores
                    areas.append(auroc(scores, one.truth(case, kind)))
                    worst = min(worst, (areas[-1], f"{algorithm}/{case}, {kind}"))
        every = [area for areas in found.values() for area in areas]
        means = (f"{statistics.fmean(areas):.3f}" for areas in (*found.values(), every))
        rows.append((method, *means, f"{worst[0]:.2f} ({worst[1]})" if worst[0] < 1 else "1.00"))
    return list(table(("method", "resample", "zero", "all", "least"), rows))


def precision() -> list[str]:
    """Spearman's correlation of head scores in bfloat16 with those in float32, on the shipped miniature."""
    model, tokenizer = miniature.load()
    coarse = copy.deepcopy(model).to(torch.bfloat16)
    rows = []
    for method in ("patching", "attribution", "eap-ig"):
        cells = []
        for name in domains.BUILT_IN:
            task = Task.from_domain(name, count=64)
            exact, rounded = (find(one, task, method, tokenizer=tokenizer).scores for one in (model, coarse))
            cells.append(f"{spearman(exact, rounded):.3f}")
        rows.append((method, *cells))
    return list(table(("method", *domains.BUILT_IN), rows))


def null() -> list[str]:
    """Share of p-values below 0.05 on pairs of models that differ from one base by seed noise alone."""
    shapes: dict[str, dict[str, object]] = {
        "16 heads, 5 in the circuit": {"shape": (4, 4), "size": 5},
        "64 heads, 16 in the circuit": {"shape": (8, 8), "size": 16},
        "16 heads, prompts six times noisier": {"shape": (4, 4), "size": 5, "prompt_noise": 3.0},
    }
    rows = []
    for name, options in shapes.items():
        random, small = np.random.default_rng(12), defaultdict[str, list[bool]](list)
        for _ in range(DRAWS):
            base, one, two = map(effects, replicates(random, 3, **options))  # type: ignore[arg-type]
            for measure, p in exchange.heads(base, one, two, 80, 0).items():
                small[measure].append(p.value < 0.05)
        rows.append((name, *(f"{100 * statistics.fmean(small[measure]):.1f}%" for measure in KEEPS)))
    return list(table(("models", *KEEPS), rows))


FIGURES: dict[str, Callable[[], list[str]]] = {"planted": planted, "precision": precision, "null": null}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=list(FIGURES))
    sys.stdout.write("\n".join(FIGURES[parser.parse_args().figure]()) + "\n")


if __name__ == "__main__":
    main()
