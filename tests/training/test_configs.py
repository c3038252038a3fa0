"""The shipped configurations: each is held to what can be checked without its model, and runs whole in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlforget.domains import HubDomain, miniature
from rlforget.errors import ConfigError, MissingExtraError, NotACheckpointError
from rlforget.training import SequenceConfig, StageConfig, load_config, train_stage
from rlforget.training.naming import domain_named
from rlforget.training.needs import model_shape, needs_of
from rlforget.training.plan import Plan
from rlforget.training.smoke import smoke_test_of
from tests.cli.conftest import run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("qwen*.yaml"))
SIZES = {"Qwen/Qwen2.5-3B-Instruct": 3.09e9, "Qwen/Qwen3-4B-Thinking-2507": 4.02e9}
"""Billions of parameters, as the models' pages say."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_says_what_it_needs(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    done = run("sequence", str(path), "-o", str(tmp_path / "run"), "--dry-run", "--json")
    assert done.code == 0, done.err
    needs = done.json["needs"]
    assert needs["parameters"] == pytest.approx(SIZES[config.model], rel=2e-3)
    assert all(20e9 < stage["total_bytes"] < 0.7 * 141e9 for stage in needs["stages"])  # an H200, beside vLLM's 30%
    assert needs["evaluation_bytes"] < 80e9
    assert not (tmp_path / "run").exists()
    shown = run("sequence", str(path), "-o", str(tmp_path / "run"), "--dry-run")
    assert "a device, at least" in shown.out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_domain_and_reward_is_there(path: Path) -> None:
    config = load_config(path)
    assert {stage.domain for stage in config.stages} <= {domain.name for domain in config.domains}
    for stage in config.stages:
        assert isinstance(domain_named(config, stage.domain), HubDomain)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs_whole_in_small(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    done = run("sequence", str(path), "-o", str(tmp_path / "run"), "--smoke", "--json")
    assert done.code == 0, done.err
    assert [stage["name"] for stage in done.json["stages"]] == ["base", *(stage.name for stage in config.stages)]
    small = smoke_test_of(config)
    kept = {"method", "name", "parent", "loss", "scale_rewards", "beta", "schedule", "activation_checkpointing", "lora"}
    for ours, theirs in zip(small.stages, config.stages, strict=True):
        assert ours.model_dump(include=kept) == theirs.model_dump(include=kept)


def test_a_smoke_run_needs_a_domain_to_stand_in() -> None:
    config = load_config(CONFIGS[0])
    nameless = [config.domains[0].model_copy(update={"smoke": None}), *config.domains[1:]]
    with pytest.raises(ConfigError, match="the built-in domain that stands for it"):
        smoke_test_of(config.model_copy(update={"domains": nameless}))


def test_needs_grow_with_what_is_asked() -> None:
    def total(**changes: object) -> int:
        stage = StageConfig(domain="math", **changes)  # type: ignore[arg-type]
        return needs_of(Plan(SequenceConfig(stages=[stage]))).stages[0].total

    model, _ = miniature.load()
    needs = needs_of(Plan(SequenceConfig(stages=[StageConfig(domain="math")])))
    assert needs.parameters == sum(p.numel() for p in model.parameters())
    plain = total()
    assert total(beta=0.1) == plain + 4 * needs.parameters
    assert total(micro_batch=16) < plain
    assert total(activation_checkpointing=True) < plain
    assert total(lora={"rank": 2}) < plain


def test_a_model_of_unknown_shape_is_named() -> None:
    with pytest.raises(NotACheckpointError, match=r"Qwen/Qwen2\.5-3B-Instruct"):
        model_shape("nobody/no-such-model")


def test_vllm_is_asked_for_by_name_where_it_is_missing() -> None:
    model, tokenizer = miniature.load()
    with pytest.raises(MissingExtraError, match="the package vllm"):
        train_stage(model, tokenizer, StageConfig(domain="math", vllm="colocate"), seed=0, progress=False)
    with pytest.raises(Exception, match="a key of method 'grpo'"):
        StageConfig(domain="math", method="sft", vllm="server")


def test_a_step_must_be_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlforget.training.arguments import sft_arguments

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 processes that share the 16 sequences"):
        sft_arguments(StageConfig(domain="math", method="sft"), seed=0, device="cpu", folder="x", saving={})
