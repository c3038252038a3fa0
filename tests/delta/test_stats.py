from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.delta import Change, Delta, DeltaStats, diff
from rlforget.delta.naming import kind_of, layer_of
from rlforget.delta.stats import combine
from tests.delta.random_weights import random_tensor, tuned

FLOATS = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@given(st.sampled_from(FLOATS), st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_counts_and_norms_are_those_of_the_dense_tensors(dtype: torch.dtype, seed: int, share: float) -> None:
    rng = random.Random(seed)
    before = random_tensor(dtype, (7, 11), rng)
    after = tuned(before, share, rng)
    change = diff({"x": before}, {"x": after}).stats().total

    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    differs = before.view(size) != after.view(size)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    old, new = before.to(wide), after.to(wide)
    finite = old.isfinite() & new.isfinite()
    distance = (new - old).abs()
    assert change.numel == 77
    assert change.changed == int(differs.sum())
    assert change.non_finite == int((differs & ~finite).sum())
    assert change.changed_absolute == int((differs & (~finite | (distance > 1e-5))).sum())
    larger = torch.maximum(old.abs(), new.abs())
    assert change.changed_relative == int((differs & (~finite | (distance > 1e-3 * larger))).sum())
    kept = distance[finite].tolist()
    assert change.l1 == pytest.approx(math.fsum(kept))
    assert change.sum_of_squares == pytest.approx(math.fsum(value * value for value in kept))
    assert change.largest == max(kept, default=0.0)
    assert change.dtypes == (str(dtype).removeprefix("torch."),)


@pytest.mark.parametrize("dtype", FLOATS[1:4])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_unit_steps_are_those_to_the_next_value(dtype: torch.dtype, seed: int) -> None:
    old = random_tensor(dtype, (40,), random.Random(seed))
    old = old[old.isfinite()]
    for towards in (math.inf, -math.inf):
        new = torch.nextafter(old, torch.full_like(old, towards))
        finite = int(new.isfinite().sum())
        assert diff({"x": old}, {"x": new}).stats().total.unit_steps == finite
        # From a zero to the other's neighbour is one step, as the zeros are one value; two steps never count.
        far = torch.nextafter(new, torch.full_like(old, towards))
        assert diff({"x": old}, {"x": far}).stats().total.unit_steps == 0


def test_unit_steps_across_zero_and_of_integers() -> None:
    tiny = torch.tensor([1, -0x7FFF, 0, -0x8000], dtype=torch.int16).view(torch.bfloat16)  # +tiny, -tiny, +0, -0
    steps = {(a, b): diff({"x": tiny[a]}, {"x": tiny[b]}).stats().total.unit_steps for a in range(4) for b in range(4)}
    near = {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert steps == {(a, b): int((a, b) in near or (b, a) in near) for a in range(4) for b in range(4)}
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    before, after = torch.tensor([low, 5, 5, low]), torch.tensor([high, 6, 7, low + 1])
    assert diff({"x": before}, {"x": after}).stats().total.unit_steps == 2
    bytes_ = diff({"x": torch.tensor([127], dtype=torch.uint8)}, {"x": torch.tensor([128], dtype=torch.uint8)})
    assert bytes_.stats().total.unit_steps == 1


def test_steps_are_counted_by_powers_of_two() -> None:
    before = torch.full((6,), 1.0, dtype=torch.bfloat16)
    after = (before.view(torch.int16) + torch.tensor([0, 1, 2, 3, 4, 9], dtype=torch.int16)).view(torch.bfloat16)
    assert diff({"x": before}, {"x": after}).stats().total.steps[:6] == (0, 1, 2, 1, 1, 0)


def test_non_finite_changes_count_but_do_not_spoil_the_norms() -> None:
    inf, nan = math.inf, math.nan
    before, after = torch.tensor([1.0, inf, nan, 3.0, 1.0]), torch.tensor([nan, -inf, 2.0, 7.0, 1.0])
    change = diff({"x": before}, {"x": after}).stats().total
    assert (change.changed, change.changed_absolute, change.changed_relative, change.non_finite) == (4, 4, 4, 3)
    assert (change.l1, change.l2, change.largest) == (4.0, 4.0, 4.0)
    assert "3 changed coordinates are NaN" in diff({"x": before}, {"x": after}).stats().table()


def test_sums_are_the_same_however_many_threads() -> None:
    torch.manual_seed(0)
    delta = diff({"x": torch.zeros(100_000)}, {"x": torch.randn(100_000)})
    results = set()
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        results.add((delta.stats().total.l1, delta.stats().total.sum_of_squares))
    torch.set_num_threads(threads)
    assert len(results) == 1


def model(layers: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    names = [
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(
            f"model.layers.{layer}.{part}"
            for layer in range(layers)
            for part in ("self_attn.q_proj.weight", "self_attn.q_norm.weight", "mlp.up_proj.weight", "odd.thing")
        ),
    ]
    return {name: torch.zeros(2, 3, dtype=dtype) for name in names}


def some_stats() -> DeltaStats:
    before = model(11)
    after = {name: tensor + 1 if "layers.3" in name else tensor for name, tensor in before.items()}
    before["model.norm.weight"] = after["model.norm.weight"] = torch.zeros(3)
    return diff(before, after).stats()


def test_groups_add_up_to_the_total() -> None:
    stats = some_stats()
    assert list(stats.kinds) == ["attention", "mlp", "embedding", "norm", "other"]
    assert list(stats.layers) == [*range(11), None]
    assert stats.layers[3].changed == 24
    assert stats.total.changed == 24
    assert stats.total.dtypes == ("bfloat16", "float32")
    for groups in (stats.kinds, stats.layers, stats.tensors):
        assert combine(groups.values()) == stats.total  # type: ignore[attr-defined]


def test_empty_deltas_have_statistics() -> None:
    assert Delta([]).stats().total == Change()
    assert (Change().sparsity, Change().unit_step_share, Change().l2) == (1.0, 0.0, 0.0)
    assert "0 of 0 coordinates changed" in Delta([]).stats().table()
    assert diff({"x": torch.empty(0, 3)}, {"x": torch.empty(0, 3)}).sparsity == 1.0


@given(
    st.builds(
        Change,
        dtypes=st.lists(st.sampled_from(["bfloat16", "float8_e4m3fn", "float64"]), max_size=2).map(tuple),
        numel=st.integers(0, 10**14),
        changed=st.integers(0, 10**14),
        non_finite=st.integers(0, 10**14),
        sum_of_squares=st.floats(0, 1e300),
        largest=st.floats(0, 1e300),
    ),
    st.integers(0, 10**14),
    st.text(min_size=1, max_size=200),
)
@settings(max_examples=100, deadline=None)
def test_tables_fit_100_columns(change: Change, unit_steps: int, name: str) -> None:
    numel, changed, unit_steps = sorted([change.numel, change.changed, unit_steps], reverse=True)
    steps = (0, unit_steps, *[0] * 63)
    stats = DeltaStats({name: replace(change, numel=numel, changed=changed, steps=steps)})
    table = stats.table(tensors=True)
    assert all(len(line) <= 100 for line in table.split("\n"))
    assert len(table.split("\n")) <= 10


def test_the_table_shows_what_was_asked_for() -> None:
    stats = some_stats()
    plain, short, full = stats.table(), stats.table(layers=False), stats.table(tensors=True)
    assert "layer 10" in plain
    assert "layer 10" not in short
    assert "...ers.10.mlp.up_proj.weight"[-20:] in full
    total = next(line for line in plain.split("\n") if line.startswith("total"))
    assert total.split()[:4] == ["total", "mixed", "273", "24"]


def test_percentages_say_all_or_none_only_where_that_is_exact() -> None:
    stats = DeltaStats({"x": Change(numel=10**9, changed=1), "y": Change(numel=10**9, changed=10**9 - 1)})
    rows = stats.table(tensors=True).split("\n")
    assert ">99.99%" in next(row for row in rows if row.startswith("x"))
    assert "<0.01%" in next(row for row in rows if row.startswith("y"))


def test_everything_survives_json() -> None:
    stats = some_stats()
    read = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert read["total"]["changed"] == 24
    assert sum(read["total"]["steps"]) == 24
    assert read["tensors"]["model.embed_tokens.weight"]["steps"] == []
    assert read["layers"]["3"]["changed"] == 24
    assert read["tensors"]["model.norm.weight"]["kind"] == "norm"
    assert read["tensors"]["model.norm.weight"]["layer"] is None
    assert read["kinds"]["mlp"]["sparsity"] == stats.kinds["mlp"].sparsity


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.embed_tokens.weight", "embedding", None),
        ("lm_head.weight", "embedding", None),
        ("model.norm.weight", "norm", None),
        ("model.layers.7.input_layernorm.weight", "norm", 7),
        ("model.layers.7.self_attn.k_norm.weight", "norm", 7),
        ("model.layers.12.self_attn.o_proj.bias", "attention", 12),
        ("model.layers.12.mlp.gate_proj.weight", "mlp", 12),
        ("model.layers.0.mlp.experts.5.down_proj.weight", "mlp", 0),
        ("model.layers.0.block_sparse_moe.gate.weight", "mlp", 0),
        ("transformer.h.3.ln_1.weight", "norm", 3),
        ("transformer.h.3.attn.c_attn.weight", "attention", 3),
        ("transformer.h.3.mlp.c_fc.weight", "mlp", 3),
        ("transformer.wte.weight", "embedding", None),
        ("transformer.ln_f.bias", "norm", None),
        ("encoder.layer.1.intermediate.dense.weight", "mlp", 1),
        ("model.layers.1.mamba.A_log", "other", 1),
        ("rotary.inv_freq", "other", None),
    ],
)
def test_names_tell_kind_and_layer(name: str, kind: str, layer: int | None) -> None:
    assert (kind_of(name), layer_of(name)) == (kind, layer)
