"""Checkpoints as transformers and peft save them survive the way through a delta file and back, on bits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rlforget as rf
from rlforget.errors import RlforgetError
from rlforget.weights import open_weights
from tests.delta.random_weights import same_bits
from tests.delta.real_layouts import build, load, nudge, quiet, same_state, save, train


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


def assert_same_checkpoint(made: Path, like: Path) -> None:
    """Names, dtypes, shapes and bits of the weights, and every other file, byte for byte."""
    a, b = open_weights(made), open_weights(like)
    assert set(a.names()) == set(b.names())
    assert all(same_bits(a.tensor(name), b.tensor(name)) for name in b.names())
    assert other_files(made) == other_files(like)


def other_files(folder: Path) -> dict[str, bytes]:
    names = (name for name in os.listdir(folder) if not name.startswith(".") and ".safetensors" not in name)
    return {name: (folder / name).read_bytes() for name in names}


def there_and_back(root: Path, *, self_contained: bool = False, rename: dict[str, str] | None = None) -> rf.Delta:
    """Lead `before` to `after` and back by a delta in memory, then by one from a file, and compare every bit.

    What the file led to is left in `applied` and `reverted`.
    """
    before, after, path = root / "before", root / "after", root / "change.delta.safetensors"
    delta = rf.diff(before, after, rename=rename)
    rf.apply(before, delta, out=root / "applied in memory")
    assert_same_checkpoint(root / "applied in memory", after)
    rf.revert(after, delta, out=root / "reverted in memory")
    assert_same_checkpoint(root / "reverted in memory", before)

    delta.save(path, self_contained=self_contained)
    loaded = rf.Delta.load(path, base=None if self_contained else before)
    assert loaded == delta
    rf.apply(before, path, out=root / "applied")
    assert_same_checkpoint(root / "applied", after)
    # A file that is not self-contained lacks the tensors that were resized, retyped or dropped.
    rf.revert(after, path if self_contained or not delta.whole else delta, out=root / "reverted")
    assert_same_checkpoint(root / "reverted", before)
    return delta


@pytest.mark.parametrize("shard", ["50GB", "20KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3", "mixtral", "qwen2_moe", "gpt2"])
def test_a_trained_checkpoint_comes_back(tmp_path: Path, architecture: str, shard: str) -> None:
    model = build(architecture)
    save(model, tmp_path / "before", shard)
    train(model, lr=1e-4 if shard == "50GB" else 1e-6)  # most weights change, or a few of them
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    save(model, tmp_path / "after", shard, words=90)
    delta = there_and_back(tmp_path)
    assert delta.changed
    assert not delta.whole
    assert set(delta.files) == {"generation_config.json", "tokenizer.json"}
    assert same_state(load(tmp_path / "applied"), load(tmp_path / "after"))
    assert same_state(load(tmp_path / "reverted"), load(tmp_path / "before"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_a_checkpoint_of_another_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("llama", dtype)
    save(model, tmp_path / "before", "20KB")
    nudge(model)
    save(model, tmp_path / "after", "20KB")
    delta = there_and_back(tmp_path)
    assert {tensor.dtype for tensor in delta.values()} == {dtype}
    assert 0 < delta.changed < delta.numel


def test_a_checkpoint_is_changed_in_place_and_back(tmp_path: Path) -> None:
    model = build("gemma3")
    save(model, tmp_path / "before", "20KB")
    train(model)
    save(model, tmp_path / "after", "20KB")
    path, folder = tmp_path / "change.delta.safetensors", tmp_path / "changed"
    rf.diff(tmp_path / "before", tmp_path / "after").save(path)
    shutil.copytree(tmp_path / "before", folder)
    rf.apply(folder, path, in_place=True)
    assert_same_checkpoint(folder, tmp_path / "after")
    assert same_state(load(folder), load(tmp_path / "after"))
    rf.revert(folder, path, in_place=True)
    assert_same_checkpoint(folder, tmp_path / "before")


def test_shards_may_differ(tmp_path: Path) -> None:
    model = build("qwen2")
    save(model, tmp_path / "before", "50GB")
    train(model)
    save(model, tmp_path / "after", "20KB")
    there_and_back(tmp_path)


def test_the_delta_of_folders_changes_a_live_model(tmp_path: Path) -> None:
    model = build("gemma3")
    save(model, tmp_path / "before")
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model)
    save(model, tmp_path / "after")
    new = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    delta = rf.diff(tmp_path / "before", tmp_path / "after")
    rf.revert(model, delta)
    assert same_state(model.state_dict(), old)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    rf.apply(model, delta)
    assert same_state(model.state_dict(), new)


@pytest.mark.parametrize("self_contained", [True, False], ids=["self-contained", "needs its base"])
def test_a_resized_vocabulary(tmp_path: Path, self_contained: bool) -> None:
    model = build("qwen2")
    save(model, tmp_path / "before")
    model.resize_token_embeddings(103)
    train(model)
    save(model, tmp_path / "after", words=103)
    delta = there_and_back(tmp_path, self_contained=self_contained)
    assert set(delta.whole) == {"model.embed_tokens.weight"}
    assert {"config.json", "tokenizer.json"} <= set(delta.files)
    assert load(tmp_path / "applied")["lm_head.weight"].shape == (103, 32)
    assert same_state(load(tmp_path / "applied"), load(tmp_path / "after"))
    assert same_state(load(tmp_path / "reverted"), load(tmp_path / "before"))


def test_a_file_without_the_old_rows_does_not_lead_back(tmp_path: Path) -> None:
    model = build("qwen2")
    save(model, tmp_path / "before")
    model.resize_token_embeddings(103)
    save(model, tmp_path / "after")
    rf.diff(tmp_path / "before", tmp_path / "after").save(tmp_path / "x.delta.safetensors")
    with pytest.raises(RlforgetError):
        rf.revert(tmp_path / "after", tmp_path / "x.delta.safetensors", out=tmp_path / "reverted")
    assert not (tmp_path / "reverted").exists()


@pytest.mark.parametrize("self_contained", [True, False], ids=["self-contained", "needs its base"])
def test_a_retyped_checkpoint(tmp_path: Path, self_contained: bool) -> None:
    model = build("gpt2")
    save(model, tmp_path / "before", "20KB")
    save(model.float(), tmp_path / "after", "20KB")
    delta = there_and_back(tmp_path, self_contained=self_contained)
    assert not list(delta)
    assert set(delta.whole) == set(open_weights(tmp_path / "before").names())
    assert json.loads(delta.files["config.json"].after or b"")["dtype"] == "float32"
    assert {tensor.dtype for tensor in load(tmp_path / "applied").values()} == {torch.float32}


@pytest.mark.parametrize("self_contained", [True, False], ids=["self-contained", "needs its base"])
def test_a_head_that_is_untied_and_biases_that_go(tmp_path: Path, self_contained: bool) -> None:
    tied = build("qwen2")
    save(tied, tmp_path / "before")
    loose = build("llama")  # the same names but for the biases, and a head of its own
    loose.load_state_dict(tied.state_dict(), strict=False)
    train(loose)
    save(loose, tmp_path / "after")
    delta = there_and_back(tmp_path, self_contained=self_contained)
    gone = {name for name, whole in delta.whole.items() if whole.after is None}
    assert gone == {name for name in open_weights(tmp_path / "before").names() if name.endswith(".bias")}
    assert {name for name, whole in delta.whole.items() if whole.before is None} == {"lm_head.weight"}
    assert same_state(load(tmp_path / "applied"), load(tmp_path / "after"))


@pytest.mark.parametrize("self_contained", [True, False], ids=["self-contained", "needs its base"])
def test_a_base_model_whose_names_gain_a_prefix(tmp_path: Path, self_contained: bool) -> None:
    model = build("qwen2")
    save(model.model, tmp_path / "before", "20KB")  # `layers.0...`
    train(model)
    save(model, tmp_path / "after", "20KB")  # `model.layers.0...`
    old, new = (open_weights(tmp_path / side).names() for side in ("before", "after"))
    rename = {name: f"model.{name}" for name in old}
    assert set(rename.values()) == set(new)
    delta = there_and_back(tmp_path, self_contained=self_contained, rename=rename)
    assert delta.renamed == rename
    assert not delta.whole
    assert same_state(load(tmp_path / "applied"), load(tmp_path / "after"))


@pytest.mark.parametrize("self_contained", [True, False], ids=["self-contained", "needs its base"])
def test_an_adapter_folder(tmp_path: Path, self_contained: bool) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = save(build("llama", torch.float32), tmp_path / "base")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", base_model_name_or_path=str(base)
    )
    model = get_peft_model(build("llama", torch.float32), config)
    model.save_pretrained(tmp_path / "before")
    train(model, lr=1e-2)
    model.peft_config["default"].lora_alpha = 32
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "after" / "adapter_model.safetensors").is_file()
    delta = there_and_back(tmp_path, self_contained=self_contained)
    assert delta.changed
    assert set(delta.files) == {"adapter_config.json"}
    states = [
        PeftModel.from_pretrained(build("llama", torch.float32), tmp_path / side).state_dict()
        for side in ("applied", "after")
    ]
    assert same_state(*states)
