from __future__ import annotations

import pytest

from rlforget import domains
from rlforget.domains import Example
from rlforget.errors import ConfigError
from rlforget.experiments.circuits_page import BEGIN, END, section, write_section
from rlforget.experiments.circuits_start import Rehearsal
from rlforget.experiments.circuits_study import Study, run_study
from rlforget.training.progress import Silent

SMALL = Study(reward=0.99, limit=1, seeds=(0, 1), rates=(1e-3,), evaluation_prompts=16, completions=8, pairs=8)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlforget.experiments.circuits_start.STEPS", 1)
        return folder, run_study(SMALL, ["miniature"], folder, Silent())


def test_every_method_seed_and_rate_is_run_once(results):
    keys = [(run["base"], run["rate"], run["seed"], run["method"]) for run in results[1]["runs"]]
    assert len(set(keys)) == len(keys) == 4
    assert all(run["steps"] == 1 and not run["stopped"] for run in results[1]["runs"])


def test_a_second_run_repeats_the_first_without_training(results, monkeypatch):
    folder, found = results
    monkeypatch.setattr("rlforget.experiments.circuits_study.train_stage", None)
    assert run_study(SMALL, ["miniature"], folder, Silent()) == found


def test_a_circuit_of_every_domain_is_compared(results):
    by_domain = results[1]["circuits"]["0.001"]
    assert set(by_domain) == set(domains.BUILT_IN)
    for found in by_domain.values():
        assert all(len(found["methods"][method]["retention"]["values"]) == 2 for method in ("sft", "grpo"))
        assert 0 < found["p"]["correlation"] <= 1
        low, high = found["methods"]["sft"]["retention"]["interval"]
        assert 0 <= low <= high <= 1


def test_the_time_is_that_of_all_runs(results):
    taken = [run["training_seconds"] + run["measuring_seconds"] for run in results[1]["runs"]]
    assert sum(taken) < results[1]["seconds"] < 600
    assert f"took {results[1]['seconds'] / 60:.0f} minutes" in section(results[1])


def test_the_section_replaces_what_stands_between_its_marks(results, tmp_path):
    page = tmp_path / "page.md"
    science, other = ([mark.format(target=name) for mark in (BEGIN, END)] for name in ("science", "writing"))
    kept = f"{other[0]}\nkept\n{other[1]}"
    page.write_text(f"before\n{kept}\n{science[0]}\nold\n{science[1]}\nafter\n", encoding="utf-8")
    write_section(page, results[1])
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{kept}\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert section(results[1]) in text


def test_a_page_without_marks_is_left_alone(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        write_section(page, results[1])
    assert page.read_text(encoding="utf-8") == "nothing\n"


def test_a_rehearsal_gives_wrong_answers_to_the_target_alone():
    examples = Rehearsal("science").examples(600, seed=0)
    graders = {"S": "science", "M": "math", "X": "code", "Q": "qa", "W": "writing"}
    right = {letter: [] for letter in graders}
    for example in examples:
        letter = example.prompt[0]
        gold = Example(example.prompt, _science(example.prompt)) if letter == "S" else example
        right[letter].append(domains.get(graders[letter]).reward(gold, example.answer))
    assert all(min(right[letter]) == 1.0 for letter in "MXQW")
    assert 0.55 < sum(right["S"]) / len(right["S"]) < 0.75  # 40% drawn anew, a tenth of them right by luck


def _science(prompt: str) -> str:
    table, molecule = prompt[1:-1].split(":")
    masses = {table[i]: int(table[i + 1]) for i in range(0, len(table), 2)}
    totals = [sum(masses[atom] for atom in molecule[: i + 1]) % 10 for i in range(len(molecule))]
    return "".join(map(str, totals))
