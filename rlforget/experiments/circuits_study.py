"""SFT against GRPO on one target, from several bases, seeds and learning rates: which heads did each damage?

Run as `python -m rlforget.experiments.circuits_study runs/circuits --bases BASE ... --page docs/circuits.md`; a base is
`miniature` or a folder that `rlforget miniature --seed N --out BASE` made. What is already in the output folder is not
done again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlforget.domains import miniature
from rlforget.experiments.circuits_measure import compared, divergences, evaluated, find_circuits, summary
from rlforget.experiments.circuits_page import write_section
from rlforget.experiments.circuits_start import sharpen
from rlforget.training import Progress, StageConfig, train_stage
from rlforget.training.progress import choose
from rlforget.weights.atomic import new_file

METHODS = ("sft", "grpo")


@dataclass(frozen=True)
class Study:
    """What is run.

    Attributes:
        target: The domain that is fine-tuned on.
        reward: Mean sampled training reward at which a fine-tune ends.
        window: Steps over which that mean is taken.
        limit: Steps at which a fine-tune ends in any case.
        sequences: A step, of both methods.
        samples: Completions a prompt, of GRPO.
        seeds: Of the fine-tunes.
        rates: Learning rates.
        evaluation_prompts: Prompts a domain for every reward.
        completions: Completions a domain for every divergence.
        pairs: Pairs of prompts a task for every circuit.
    """

    target: str = "science"
    reward: float = 0.97
    window: int = 3
    limit: int = 80
    sequences: int = 128
    samples: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    evaluation_prompts: int = 256
    completions: int = 128
    pairs: int = 96


def run_study(study: Study, bases: list[str], out: Path, progress: Progress) -> dict[str, Any]:
    """Run what is not in `out` yet.

    Returns:
        JSON: `study`; `starts`, the rewards of each base's start; `runs`, for each base, learning rate, seed and
        method: steps, rewards in every domain, divergences from the start; `circuits`, for each learning rate, the
        summary of `circuits_measure.summary`; `seconds`, the wall time of all of it but the comparison.
    """
    folders = [out / f"base-{number}" for number in range(len(bases))]
    starts, runs = [], []
    for number, (base, folder) in enumerate(zip(bases, folders, strict=True)):
        start, tokenizer, course = _start(study, base, folder / "start", progress)
        starts.append({**course, **_measured(study, start, start, tokenizer, 0, folder / "start")})
        for rate in study.rates:
            for seed in study.seeds:
                for method in METHODS:
                    place = folder / f"rate-{rate:g}" / f"{method}-{seed}"
                    course = _tuned(study, start, tokenizer, method, seed, rate, place, progress)
                    found = _measured(study, start, _load_model(place), tokenizer, seed, place)
                    runs.append({"base": number, "rate": rate, "seed": seed, "method": method, **course, **found})
    circuits = {f"{rate:g}": summary([_comparison(study, f, rate) for f in folders], *METHODS) for rate in study.rates}
    return {
        "study": asdict(study),
        "starts": [one["rewards"] for one in starts],
        "runs": runs,
        "circuits": circuits,
        "seconds": sum(one[taken] for one in (*starts, *runs) for taken in ("training_seconds", "measuring_seconds")),
    }


def _comparison(study: Study, folder: Path, rate: float) -> dict[str, Any]:
    places = {
        method: [folder / f"rate-{rate:g}" / f"{method}-{seed}" / "circuits" for seed in study.seeds]
        for method in METHODS
    }
    return compared(folder / "start" / "circuits", places)


def _start(study: Study, base: str, folder: Path, progress: Progress) -> tuple[Any, Any, dict[str, Any]]:
    """The base made sure of every domain but the target, its tokenizer, and what that took."""
    record = folder / "training.json"
    if not record.exists():
        began = time.perf_counter()
        model, tokenizer = miniature.load() if base == "miniature" else _load(Path(base))
        sharpen(model, tokenizer, study.target, progress)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write(record, {"training_seconds": time.perf_counter() - began})
    return *_load(folder), _read(record)


def _tuned(
    study: Study, start: Any, tokenizer: Any, method: str, seed: int, rate: float, place: Path, progress: Progress
) -> dict[str, Any]:
    """Fine-tune a copy of the start into `place`, unless it is there; the course of the training."""
    record = place / "training.json"
    if not record.exists():
        began, model = time.perf_counter(), copy.deepcopy(start)
        result = train_stage(model, tokenizer, _stage(study, method, rate), seed=seed, progress=progress)
        model.save_pretrained(place)
        course = {"steps": result.steps, "stopped": result.stopped, "course": result.rewards}
        _write(record, {**course, "training_seconds": time.perf_counter() - began})
    return _read(record)


def _measured(study: Study, start: Any, model: Any, tokenizer: Any, seed: int, place: Path) -> dict[str, Any]:
    """Rewards and divergences of a model, and, in its folder, its circuits."""
    record = place / "measured.json"
    if not record.exists():
        began = time.perf_counter()
        find_circuits(model, tokenizer, study.pairs, place / "circuits")
        found = {
            "rewards": evaluated(model, tokenizer, study.evaluation_prompts),
            "kl": divergences(start, model, tokenizer, study.completions, seed),
        }
        _write(record, {**found, "measuring_seconds": time.perf_counter() - began})
    return _read(record)


def _write(path: Path, values: dict[str, Any]) -> None:
    """Write a record; that it is there says that its work is done, so it is whole or not at all."""
    with new_file(path) as file:
        file.write(json.dumps(values).encode())


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _stage(study: Study, method: str, rate: float) -> StageConfig:
    common: dict[str, Any] = {
        "domain": study.target,
        "steps": study.limit,
        "learning_rate": rate,
        "stop_at_reward": study.reward,
        "stop_window": study.window,
    }
    if method == "grpo":
        return StageConfig(method="grpo", prompts=study.sequences // study.samples, samples=study.samples, **common)
    return StageConfig(method="sft", prompts=study.sequences, evaluate_every=1, **common)


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    return _load_model(folder), AutoTokenizer.from_pretrained(folder)


def _load_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()


def main() -> None:
    """Run the study and write its section of the page."""
    defaults = Study()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--bases", nargs="+", default=["miniature"])
    parser.add_argument("--target", default=defaults.target)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(defaults.seeds))
    parser.add_argument("--rates", type=float, nargs="+", default=list(defaults.rates))
    parser.add_argument("--page", type=Path, help="page whose section on the study is written anew")
    options = parser.parse_args()
    study = Study(target=options.target, seeds=tuple(options.seeds), rates=tuple(options.rates))
    results = run_study(study, options.bases, options.out, choose(True))
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_section(options.page, results)


if __name__ == "__main__":
    main()
