"""What the later change cost the earlier domains: the files that the report reads, as the command line prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlforget.experiments.repairs import Scene
from rlforget.experiments.settings import EARLIER, LATER
from rlforget.interference import damage, damage_curve, measure_subspace
from rlforget.report.measured_files import CONFLICT_FILE, DAMAGE_FILE


def write_measured(scene: Scene, out: Path) -> None:
    """Write the damage to every earlier domain, predicted by tensor and measured, and its directions into `out`.

    They are what `rlforget damage --by tensor --json` and `rlforget conflict --parts subspace --json` print.
    """
    drawn: dict[str, Any] = {
        "samples": scene.settings.damage_samples,
        "seed": scene.seed,
        "tokenizer": scene.tokenizer,
    }
    hurt = {
        name: {
            "predicted": damage(scene.model, scene.delta, name, by="tensor", **drawn).to_dict(),
            "measured": damage_curve(scene.model, scene.delta, name, **drawn).to_dict(),
        }
        for name in EARLIER
    }
    directions = measure_subspace(scene.model, scene.delta, EARLIER, LATER, **drawn).to_dict()
    told = {"samples": scene.settings.damage_samples, "seed": scene.seed}
    for name, found in ((DAMAGE_FILE, {"domains": hurt}), (CONFLICT_FILE, {"subspace": directions})):
        (out / name).write_text(json.dumps({**told, **found}, indent=1) + "\n", encoding="utf-8")
