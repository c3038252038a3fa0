"""The pair of checkpoints that a whole diff is timed on."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import rlforget as rf
from benchmarks.checkpoint_pair import SHAPES, amplitude, main
from benchmarks.profile_diff import profile


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    main([str(folder), "--size", "tiny", "--changed", "0.03"])
    return folder


def test_the_asked_share_changes(pair: Path):
    delta = rf.diff(pair / "before", pair / "after")
    assert delta.changed / delta.numel == pytest.approx(0.03, rel=0.03)
    assert delta.stats().total.unit_step_share == pytest.approx(2 / 3, abs=0.05)


def test_transformers_opens_it(pair: Path):
    model = AutoModelForCausalLM.from_pretrained(pair / "after")
    names = {name for name, _ in SHAPES["tiny"].tensors()}
    assert names == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("size", "billions"), [("0.5b", 0.494), ("1.5b", 1.544), ("3b", 3.086), ("7b", 7.616)])
def test_parameters(size: str, billions: float):
    shape = SHAPES[size]
    elements = 0
    for _, dimensions in shape.tensors():
        rows, *columns = dimensions
        elements += rows * (columns[0] if columns else 1)
    assert elements / 1e9 == pytest.approx(billions, abs=5e-4)
    config = AutoConfig.for_model(**shape.config())
    assert config.hidden_size == shape.hidden


def test_a_larger_share_takes_a_larger_noise():
    assert 0 < amplitude(0.01) < amplitude(0.1) < 0.1


def test_the_profile_accounts_for_all_of_the_time(pair: Path):
    found = profile(pair / "before", pair / "after", rounds=2)
    parts, seconds = found["parts"], found["seconds"]
    assert sum(parts.values()) == pytest.approx(seconds["diff"])
    assert min(parts.values()) >= 0
    assert found["bytes"] > 4 * found["coordinates"]
    assert seconds["read"] < seconds["diff"]
