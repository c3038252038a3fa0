"""Low-rank adapters: the factors, what they miss, and that PEFT adds just that."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import rlforget as rf
from rlforget.delta.exporting import export_lora
from rlforget.delta.exporting.factors import factors
from rlforget.delta.exporting.matrices import DenseChange, SparseChange
from rlforget.errors import ConfigError, ExportError
from tests.checkpoint_pair import write_pair

MATRIX = "model.layers.0.mlp.up_proj.weight"


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.sampled_from([0.02, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2]),
    rank=st.integers(1, 45),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25)
def test_factors_of_either_form_are_as_good_as_they_say(
    shape: tuple[int, int], share: float, dtype: torch.dtype, rank: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(shape, generator=generator).to(dtype)
    moved = torch.rand(shape, generator=generator) < share
    after = torch.where(moved, before.float() * 1.5 + 0.25, before.float()).to(dtype)
    difference = after.float() - before.float()
    indices = difference.reshape(-1).nonzero().flatten()
    sparse = SparseChange(shape, indices, difference.reshape(-1)[indices])
    singular = torch.linalg.svdvals(difference.double())
    for change in (sparse, DenseChange(before, after)):
        left, right, fit = factors(change, rank, seed=0, dtype=torch.float32)
        again = factors(change, rank, seed=0, dtype=torch.float32)
        assert torch.equal(left, again[0])
        assert torch.equal(right, again[1])
        missed = float((difference.double() - left.double() @ right.double()).square().sum())
        assert fit.energy == pytest.approx(float(difference.double().square().sum()))
        assert fit.missed == pytest.approx(missed, rel=1e-3, abs=1e-9 * fit.energy)
        least = float(singular[min(rank, *shape) :].square().sum())
        assert missed <= 1.25 * least + 1e-9 * fit.energy


def test_a_rank_beyond_a_block_of_products() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(400, 320, generator=generator) for _ in range(2))
    _, _, fit = factors(DenseChange(before, after), 300, seed=0, dtype=torch.float32)
    assert 0 < fit.error < 0.1


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_pair(folder)
    rf.write_diff(folder / "checkpoints/math", folder / "checkpoints/writing", folder / "w.delta.safetensors")
    return folder / "checkpoints"


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def logits(model: Any) -> Tensor:
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def peft_model(folder: Path, adapter: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of what does not fit
        return PeftModel.from_pretrained(load(folder), adapter)


def plainly_added(model: Any, adapter: Path) -> Any:
    """Add the factors to a model by hand."""
    stored, weights = load_file(adapter / "adapter_model.safetensors"), dict(model.named_parameters())
    with torch.no_grad():
        for key, value in stored.items():
            name = key.removeprefix("base_model.model.").replace("base_layer.", "")
            if name.endswith(".lora_A.weight"):
                weights[name.replace(".lora_A", "")] += stored[key.replace("lora_A", "lora_B")] @ value
            elif ".lora_B" not in name and name in weights:
                weights[name].copy_(value)
    return model


@pytest.mark.parametrize("save_rest", [False, True])
def test_peft_adds_what_the_adapter_holds(pair: Path, tmp_path: Path, save_rest: bool) -> None:
    delta = pair.parent / "w.delta.safetensors"
    found = export_lora(delta, tmp_path / "adapter", rank=8, base=pair / "math", save_rest=save_rest)
    adapted = peft_model(pair / "math", tmp_path / "adapter")
    by_hand = logits(plainly_added(load(pair / "math"), tmp_path / "adapter"))
    assert (logits(adapted) - by_hand).abs().max() < 1e-3 * by_hand.abs().max()
    assert (logits(load(pair / "math")) - by_hand).abs().max() > 0.1  # it does something
    merged = dict(adapted.merge_and_unload().named_parameters())
    missed = sum(
        float((rf.open_weights(pair / "writing").tensor(n) - merged[n].detach()).double().square().sum())
        for n in rf.open_weights(pair / "writing").names()
    )
    assert missed == pytest.approx(found.missed, rel=1e-4)
    assert found.kept == pytest.approx(1 - missed / found.energy)
    rest = found.saved if save_rest else found.left_out
    assert {name.rpartition(".")[2] for name in rest} == {"weight", "bias"}
    assert "model.embed_tokens.weight" in rest


def test_a_full_rank_with_the_rest_saved_is_the_model_after(pair: Path, tmp_path: Path) -> None:
    delta = rf.Delta.load(pair.parent / "w.delta.safetensors", base=pair / "math")
    found = export_lora(delta, tmp_path / "adapter", rank=64, base=pair / "math", save_rest=True)
    assert found.error < 1e-5
    after = logits(load(pair / "writing"))
    assert (logits(peft_model(pair / "math", tmp_path / "adapter")) - after).abs().max() < 1e-3 * after.abs().max()


def test_smaller_matrices_have_a_rank_of_their_own(pair: Path, tmp_path: Path) -> None:
    found = export_lora(pair.parent / "w.delta.safetensors", tmp_path / "adapter", rank=100, base=pair / "math")
    ranks = {fit.rank for fit in found.tensors.values()}
    assert ranks == {32, 64}
    peft_model(pair / "math", tmp_path / "adapter")


def test_targets_are_the_ends_of_paths(pair: Path, tmp_path: Path) -> None:
    delta = pair.parent / "w.delta.safetensors"
    found = export_lora(delta, tmp_path / "a", rank=2, base=pair / "math", targets=["q_proj", "layers.1.mlp.up_proj"])
    assert len(found.tensors) == 5
    assert MATRIX in found.left_out
    with pytest.raises(ExportError, match="lm_head"):
        export_lora(delta, tmp_path / "b", rank=2, base=pair / "math", targets=["q_proj", "lm_head"])


def test_conv1d_of_gpt2(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "after")
    delta = rf.diff(tmp_path / "before", tmp_path / "after")
    found = export_lora(delta, tmp_path / "adapter", rank=16, base=tmp_path / "before", save_rest=True)
    assert found.error < 1e-5
    after = logits(load(tmp_path / "after").eval())
    adapted = logits(peft_model(tmp_path / "before", tmp_path / "adapter").eval())
    assert (adapted - after).abs().max() < 1e-3 * after.abs().max()


def test_without_a_model_names_tell_what_is_linear(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (8, 4), "q_proj.weight": (4, 4), "norm.weight": (4,), "experts.weight": (2, 4, 4)}
    before = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    delta = rf.diff(before, {name: tensor + 1 for name, tensor in before.items()})
    found = export_lora(delta, tmp_path / "adapter", rank=1)
    assert list(found.tensors) == ["q_proj.weight"]
    assert found.left_out.keys() == shapes.keys() - {"q_proj.weight"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (1, 1, ["q_proj"])
    # A change by one number everywhere has rank 1: nothing of the matrix is missed, all of the others.
    assert found.missed == pytest.approx(8 * 4 + 4 + 2 * 16, rel=1e-5)
    with pytest.raises(ExportError, match="base"):
        export_lora(delta, tmp_path / "other", rank=1, save_rest=True)
    with pytest.raises(ConfigError):
        export_lora(delta, tmp_path / "other", rank=0)
    with pytest.raises(ExportError, match="linear"):
        export_lora(delta.restrict(["norm.weight"]), tmp_path / "other", rank=1)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_dry_run_measures_and_the_same_seed_writes_the_same_bytes(pair: Path) -> None:
    delta, base = pair.parent / "w.delta.safetensors", pair / "math"
    with tempfile.TemporaryDirectory() as work:
        measured = export_lora(delta, Path(work, "a"), rank=4, base=base, dry_run=True)
        assert not Path(work, "a").exists()
        written = [export_lora(delta, Path(work, name), rank=4, base=base) for name in ("a", "b")]
        files = [Path(work, name, "adapter_model.safetensors").read_bytes() for name in ("a", "b")]
    assert measured.to_dict() == written[0].to_dict() == written[1].to_dict()
    assert files[0] == files[1]
