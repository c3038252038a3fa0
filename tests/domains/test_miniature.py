"""The shipped miniature: an ordinary checkpoint whose scores are the ones beside it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from safetensors import safe_open

from rlforget import domains
from rlforget.domains import miniature
from rlforget.domains.miniature.build import EVALUATION_PROMPTS, SCORES_FILE
from rlforget.domains.miniature.pretrain import SHAPES, SHIPPED, Recipe, build_model, pretrain, recipe_for
from rlforget.errors import MissingExtraError, UnknownNameError

RECORD = json.loads((miniature.path() / SCORES_FILE).read_text())


@pytest.mark.parametrize("name", sorted(domains.BUILT_IN))
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_scores_are_reproduced(name: str, greedy: bool) -> None:
    model, tokenizer = miniature.load()
    score = domains.evaluate(model, tokenizer, domains.get(name), count=EVALUATION_PROMPTS, greedy=greedy)
    recorded = RECORD["scores"][name]["greedy" if greedy else "sampled"]
    # Same prompts and same draws: only the last bits of the arithmetic may differ from one machine to another, and
    # with them a few of the completions.
    assert score.mean == pytest.approx(recorded, abs=0.01)


@pytest.mark.parametrize("name", sorted(domains.BUILT_IN))
def test_there_is_room_to_gain_and_to_lose(name: str) -> None:
    assert 0.25 <= RECORD["scores"][name]["sampled"] <= 0.8


def test_it_is_an_ordinary_folder_of_a_few_megabytes() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(miniature.path())
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == RECORD["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(miniature.path())
    assert tokenizer.decode(tokenizer("Wbkt:n=ban ken tin")["input_ids"]) == "Wbkt:n=ban ken tin"
    with safe_open(miniature.path() / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())
    assert sum(f.stat().st_size for f in miniature.path().iterdir()) < 3_000_000


def test_pretraining_learns_and_is_deterministic() -> None:
    recipe = Recipe(lookup_steps=3, competence_steps=4, noise_steps=2)
    losses: dict[str, list[float]] = {}
    first = pretrain(recipe, lambda phase, step, steps, loss: losses.setdefault(phase, []).append(loss))
    second = pretrain(recipe)
    assert losses["competence"][-1] < losses["competence"][0]
    assert set(losses) == {"look-ups", "competence", "noise"}
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("size", sorted(SHAPES))
def test_a_size_has_about_as_many_parameters_as_its_name_says(size: str) -> None:
    millions = float(size.removesuffix("M"))
    found = sum(p.numel() for p in build_model(0, size).parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.25)


def test_the_shipped_recipe_is_the_default_one() -> None:
    assert recipe_for(SHIPPED, 3) == Recipe(seed=3)


def test_a_recipe_of_another_size_builds_that_size() -> None:
    recipe = replace(recipe_for("1M", 0), competence_steps=1, noise_steps=1)
    assert pretrain(recipe).config.hidden_size == SHAPES["1M"].hidden


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(UnknownNameError, match="7B"):
        recipe_for("7B", 0)


def test_what_it_needs_beyond_the_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rlforget\[train\]'"):
        miniature.load()
