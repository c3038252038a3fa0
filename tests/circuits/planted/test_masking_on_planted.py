"""Masks trained on circuits that are known."""

from __future__ import annotations

import pytest
import torch

from rlforget.circuits import find

from .ablations import auroc
from .models import ALGORITHMS, CASES

ALL = [(algorithm, case, kind) for algorithm, case in CASES for kind in ("resample", "zero")]
FEW = [("copy", "mark", "resample"), ("lookup", "keys", "zero"), ("compare", "left", "resample")]


def check(algorithm: str, case: str, kind: str, seed: int) -> None:
    planted = ALGORITHMS[algorithm](seed)
    circuit = find(planted.model, planted.cases[case].task, "masking", ablation=kind, batch_size=64, seed=seed)
    truth = planted.truth(case, kind)
    assert auroc(circuit.scores, truth) >= 0.95
    assert torch.equal(circuit.mask, truth)


@pytest.mark.parametrize(("algorithm", "case", "kind"), FEW)
def test_masks_are_the_circuit(algorithm: str, case: str, kind: str) -> None:
    check(algorithm, case, kind, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("algorithm", "case", "kind"), ALL)
def test_masks_are_the_circuit_in_every_case(algorithm: str, case: str, kind: str, seed: int) -> None:
    check(algorithm, case, kind, seed)
