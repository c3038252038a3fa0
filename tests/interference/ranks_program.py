"""One rank of a conflict subspace: run by torchrun, or alone. Writes the correction to FOLDER/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from rlforget.delta import diff
from rlforget.interference import conflict_subspace
from tests.interference.conftest import perturbed, tiny_model


def prompts(seed: int) -> list[dict[str, Tensor | int]]:
    ids = torch.randint(2, 13, (5, 4), generator=torch.Generator().manual_seed(seed))
    return [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "max_new_tokens": 3} for part in ids.split([3, 2])
    ]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    before = tiny_model()
    after = perturbed(before, 0.02, seed=1)
    delta = diff(before, after)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    form = "auto" if distributed.is_initialized() else "streamed"
    since = [delta, diff(perturbed(before, 0.01, seed=2), after)]
    rows = {"rows": "token", "row_budget": 9, "form": form, "block": 2, "mu": 1e-3, "lam": 0.5}
    found = conflict_subspace(after, delta, [prompts(0), prompts(2)], [prompts(1)], since=since, **rows)
    rank = distributed.get_rank() if distributed.is_initialized() else "alone"
    torch.save({"correction": found.correction, "damage": found.passes[0].damage}, Path(folder) / f"{rank}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
