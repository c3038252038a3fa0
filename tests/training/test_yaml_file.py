from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from rlforget.errors import ConfigError
from rlforget.experiments.settings import FULL, SEQUENCE
from rlforget.training import LoraConfig, SequenceConfig, StageConfig, load_config, yaml_file

CONFIGS = Path(__file__).parents[2] / "configs"


def fault_of(text: str, folder: Path) -> ConfigError:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value


ELSEWHERE = {
    "miniature",  # of another schema, that of `rlforget experiment`, and tested with it
    "accelerate-8-gpus",  # of accelerate's
    "qwen2.5-3b-science",  # tests/training/test_configs.py
    "qwen3-4b-four-domains",
}


@pytest.mark.parametrize(
    "path", sorted(path for path in CONFIGS.glob("*.yaml") if path.stem not in ELSEWHERE), ids=lambda path: path.stem
)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.model == "miniature"
    assert set(config.evaluation.domains or []) == {"code", "math", "qa", "writing", "science"}


def test_the_shipped_sequence_is_the_one_of_the_demo() -> None:
    stages = load_config(CONFIGS / "sequence-miniature.yaml").stages
    demo = zip(SEQUENCE, FULL.steps, FULL.learning_rates, strict=True)
    assert stages == [StageConfig(domain=d, method="grpo", steps=n, learning_rate=rate) for d, n, rate in demo]


def test_a_number_may_be_written_as_programmers_write_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("stages:\n- {domain: code, learning_rate: 1e-3}\n- {domain: math, learning_rate: 5E-4}\n")
    assert [stage.learning_rate for stage in load_config(path).stages] == [1e-3, 5e-4]


@pytest.mark.parametrize(
    ("text", "line", "key", "expected", "found", "fix"),
    [
        (
            "stages:\n- domain: code\n  lerning_rate: 1e-3",
            3,
            "stages[0].lerning_rate",
            "one of",
            "unknown",
            "learning_r",
        ),
        ("modle: x\nstages:\n- domain: code", 1, "modle", "one of model", "unknown key 'modle'", "'model'"),
        ("stages:\n- domain: code\n  steps: '3'", 3, "stages[0].steps", "a whole number", "'3'", "Change"),
        ("stages:\n- domain: code\n  steps: 2.5", 3, "stages[0].steps", "a whole number", "2.5", "Change"),
        ("stages:\n- domain: code\n  bf16: 1", 3, "stages[0].bf16", "true or false", "1", "Change"),
        ("stages:\n- domain: code\n  learning_rate: fast", 3, "learning_rate", "a number", "'fast'", "Change"),
        ("stages:\n- domain: code\n  learning_rate: .nan", 3, "learning_rate", "a finite number", "nan", "Change"),
        ("stages:\n- domain: code\n  method: gpro", 3, "stages[0].method", "one of grpo, sft", "'gpro'", "'grpo'"),
        ("stages:\n- domain: code\n  lora: 3", 3, "stages[0].lora", "a mapping", "3", "Change"),
        ("stages:\n- domain: code\n  lora:\n    rank: 0", 4, "stages[0].lora.rank", "greater than 0", "0", "Change"),
        ("stages:\n- domain: code\n  lora:\n    target_modules: 3", 4, "target_modules", "list or a string", "3", "Ch"),
        ("stages:\n- steps: 3", 2, "stages[0].domain", "the key 'domain'", "none", "Add it"),
        ("stages: []", 1, "stages", "at least one item", "a list", "Change"),
        ("stage:\n- domain: code", 1, "stage", "stages", "unknown key 'stage'", "Did you mean 'stages'?"),
        ("seed: 0", 1, "stages", "the key 'stages'", "none", "Add it"),
        ("", 1, "stages", "the key 'stages'", "none", "Add it"),
        ("- code", 1, "", "a mapping", "a list", "Change"),
        ("stages:\n- domain: code\n  method: sft\n  samples: 4", 4, "samples", "method 'sft'", "'grpo'", "Remove"),
        ("stages:\n- domain: code\n  evaluate_every: 3", 3, "evaluate_every", "method 'grpo'", "'sft'", "Remove"),
        ("stages:\n- domain: code\n  micro_batch: 7", 3, "micro_batch", "divisor of the 128", "7", "divides 128"),
        ("stages:\n- {domain: a, name: x}\n- {domain: b, name: x}", 1, "stages", "differ", "'x' twice", "Rename"),
        ("stages:\n- {domain: a, name: ../x}", 2, "stages[0].name", "a name of letters", "'../x'", "Change"),
        ("seed: 1\nseed: 2\nstages: []", 2, "seed", "each key once", "line 1 too", "Remove"),
        ("stages: [", 1, "", "YAML", "", "Mend"),
        ("evaluation:\n  cuont: 3\nstages:\n- {domain: a, steps: x}", 2, "cuont", "count", "unknown", "line 4 too"),
    ],
)
def test_a_fault_names_its_key_and_line_and_what_to_do(
    text: str, line: int, key: str, expected: str, found: str, fix: str, tmp_path: Path
) -> None:
    fault = fault_of(text, tmp_path)
    assert f"run.yaml, line {line}" in fault.what
    assert fault.what.endswith(key)
    assert expected in fault.expected
    assert found in fault.found
    assert fix in fault.fix
    assert "\n" not in str(fault)


@pytest.mark.parametrize("text", ["a: &x [*x]", "seed: 2001-99-99\nstages: []", "\x00", "a: !!python/name:os.x ''"])
def test_what_is_no_plain_yaml_is_one_clear_fault(text: str, tmp_path: Path) -> None:
    assert fault_of(text, tmp_path).expected == "YAML"


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a readable UTF-8 file"):
        load_config(tmp_path / "none.yaml")


# Unicode's own line breaks are left out: PyYAML writes them bare under allow_unicode, and YAML reads them as a space.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> SequenceConfig:
    rates = st.floats(1e-8, 1e3)
    stages = [
        StageConfig(
            domain=draw(TEXT),
            method=draw(st.sampled_from(["grpo", "sft"])),
            steps=draw(st.integers(1, 10**6)),
            learning_rate=draw(rates),
            lora=draw(st.none() | st.builds(LoraConfig, rank=st.integers(1, 64), alpha=rates)),
            stop_at_reward=draw(st.none() | st.floats(0.01, 1.0)),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    return SequenceConfig(model=draw(TEXT), stages=stages, seed=draw(st.integers(0, 2**20 - 1)))


class Writer(yaml.SafeDumper):
    """Quotes every text that the project reads as a number, `0E0` say; PyYAML's own writes for YAML 1.1."""

    yaml_implicit_resolvers = yaml_file._Loader.yaml_implicit_resolvers


@example(config=SequenceConfig(model="0E0", stages=[StageConfig(domain="1e-3")]))
@given(config=configs())
def test_a_config_survives_its_yaml(config: SequenceConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(yaml.dump(config.model_dump(), Dumper=Writer, allow_unicode=True), encoding="utf-8")
    assert load_config(path) == config


@given(place=st.integers(0, 2), key=st.sampled_from(sorted(StageConfig.model_fields)), data=st.data())
def test_a_misspelt_key_is_found_wherever_it_stands(
    place: int, key: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    typo = key[: data.draw(st.integers(1, len(key)))] + "_" + key[-1]
    lines: list[Any] = ["stages:"]
    for index in range(3):
        lines += [f"- domain: d{index}", *([f"  {typo}: 1"] if index == place else [])]
    fault = fault_of("\n".join(lines), tmp_path_factory.getbasetemp())
    assert fault.what.endswith(f"line {lines.index(f'  {typo}: 1') + 1}, key stages[{place}].{typo}")
