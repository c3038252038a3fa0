"""Comparisons: of circuits, of models, and their tables."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from rlforget.circuits import Circuit, HeadSites
from rlforget.circuits.comparison import Comparison, compare, compare_circuits, over_bases
from rlforget.circuits.effects import KEEPS
from rlforget.errors import ConfigError, LayoutError, UnknownNameError
from tests.circuits.made_circuits import of_mask, replicates
from tests.circuits.tiny_models import task_of_ids, tiny, zero_head

FEW = {"permutations": 60, "bootstrap": 60, "splits": 10}


def made(count: int = 3, seed: int = 0) -> list[Circuit]:
    return replicates(np.random.default_rng(seed), count, shape=(6, 6), size=9)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    base, sft, *grpo, replicate = made(5)
    return compare_circuits(base, {"sft": sft, "grpo": grpo}, replicates=[replicate], **FEW)


def test_equal_checkpoints_keep_all_and_have_no_vulnerable_head() -> None:
    (base,) = made(1)
    found = compare_circuits(base, {"sft": base, "grpo": base}, **FEW)
    for name in ("sft", "grpo"):
        kept = found[name]
        assert (kept["retention"].value, kept["iou"].value, kept["retention"].matched) == (1.0, 1.0, 1.0)
        assert kept["correlation"].value == pytest.approx(1.0)
        assert not kept.mask_shift.any()
        assert (kept.lost, kept.gained, kept.p_lost.value) == (0, 0, 1.0)
        interval = kept.retention.interval
        assert interval is not None
        assert (interval.low, interval.high) == (1.0, 1.0)
    difference = found.difference("sft", "grpo")
    assert all(one.count == one.reverse == 0 and one.p.value == 1.0 for one in difference.vulnerable)
    assert all(gap.value == 0 and gap.p.value == 1.0 for gap in difference.gaps.values())


def test_the_papers_circuits() -> None:
    # 36 layers of 16 heads; 153 of 297 heads kept by an SFT circuit of 265, 200 by an RL circuit of 296.
    order = torch.arange(576).view(36, 16)
    masks = [order < 297, (order < 153) | (order >= 576 - 112), (order < 200) | (order >= 576 - 96)]
    base, sft, rl = (of_mask(mask.float(), mask) for mask in masks)
    found = compare_circuits(base, {"sft": sft, "rl": rl}, sizes=[0.5], **FEW)
    shares = [(100 * found[name]["retention"].value, 100 * found[name]["retention"].chance) for name in ("sft", "rl")]
    assert [(f"{kept:.1f}", f"{chance:.1f}") for kept, chance in shares] == [("51.5", "46.0"), ("67.3", "51.4")]
    for name in ("sft", "rl"):
        null = found[name]["retention"].null
        assert null.low < found[name]["retention"].chance < null.high
        assert found[name]["retention"].interval is None
        assert found[name]["retention"].ceiling is None
    (vulnerable,) = {one.count for one in found.difference("sft", "rl").vulnerable}
    assert vulnerable == 47  # 153 to 199 of the base's; the tail of 96 lies within that of 112
    assert (found["sft"].lost, found["sft"].gained) == (297 - 153, 112)


def test_circuits_of_unlike_sizes_are_matched() -> None:
    base, other, _ = made()
    larger = Circuit(other.scores, other.top(27), "made", other.metric, per_prompt=other.per_prompt)
    row = compare_circuits(base, {"large": larger}, **FEW)["large"]
    native = row["retention"]
    assert native.chance == 27 / 36
    assert native.matched_chance == 9 / 36
    assert native.matched == int((base.mask & other.top(9)).sum()) / 9
    assert native.value == int((base.mask & larger.mask).sum()) / 9
    assert native.matched < native.value
    last = row.sizes[-1]
    assert (last["size"], last["retention"], last["chance"], last["chance_low"]) == (36, 1.0, 1.0, 1.0)


def test_every_measure_stands_beside_its_controls(comparison: Comparison) -> None:
    assert list(comparison.kept) == ["sft", "grpo/0", "grpo/1"]
    for kept in comparison.kept.values():
        assert list(kept.measures) == list(KEEPS)
        for one in kept.measures.values():
            assert None not in (one.ceiling, one.at_halves, one.interval, one.p_prompts, one.p_seeds)
            assert one.null.low <= one.null.mean <= one.null.high
            assert one.interval is not None
            assert one.interval.low <= one.interval.mean <= one.interval.high
            assert 0 < one.p_chance.value <= 1
        assert kept["retention"].from_chance_to_ceiling == pytest.approx(
            (kept["retention"].at_halves.mean - 9 / 36) / (kept["retention"].ceiling.mean - 9 / 36)  # type: ignore[union-attr]
        )
    assert [kept.size for kept in comparison.runs("grpo")] == [9, 9]


def test_vulnerable_heads_fall_with_delta_and_are_counted_both_ways(comparison: Comparison) -> None:
    found = comparison.difference("sft", "grpo").vulnerable
    counts = [(one.count, one.reverse) for one in found]
    assert counts == sorted(counts, reverse=True)
    assert found[0].count > 0
    for one in found:
        assert int(one.heads.sum()) == one.count >= one.in_base
        assert one.expected == (one.count + one.reverse) / 2


def test_a_recipe_of_several_runs_is_tested_by_runs(comparison: Comparison) -> None:
    difference = comparison.difference("sft", "grpo")
    assert difference.test == "seeds"
    assert difference["retention"].p.draws == 2
    base, one, two = made()
    assert compare_circuits(base, {"a": one, "b": two}, **FEW).difference("a", "b").test == "heads"


def test_several_bases_are_tested_together() -> None:
    found = []
    for seed in range(3):
        base, *runs = made(5, seed)
        found.append(compare_circuits(base, {"sft": runs[:2], "grpo": runs[2:]}, sizes=[9], **FEW))
    p = over_bases(found, "sft", "grpo")["retention"]
    assert p.draws == 6**3 - 1
    assert p.at_most >= p.value > 0


def test_the_dictionary_is_json_and_the_table_fits(comparison: Comparison) -> None:
    text = json.dumps(comparison.to_dict(), allow_nan=False)
    assert json.loads(text)["kept"]["sft"]["measures"]["retention"]["value"] == comparison["sft"].retention.value
    lines = comparison.table().splitlines()
    assert max(map(len, lines)) <= 100
    for word in ("retention", "IoU", "ceiling", "vulnerable", "grpo/1"):
        assert any(word in line for line in lines)


def test_the_same_seed_gives_the_same_figures() -> None:
    base, sft, grpo = made()
    one, two, other = (compare_circuits(base, {"a": sft, "b": grpo}, seed=s, **FEW).to_dict() for s in (0, 0, 1))
    assert one == two
    assert one["kept"] != other["kept"]


def test_what_cannot_be_compared_is_refused(comparison: Comparison) -> None:
    base, sft, _ = made()
    (small,) = replicates(np.random.default_rng(0), 1)
    with pytest.raises(LayoutError, match="6 layers of 6 heads"):
        compare_circuits(base, {"sft": small}, **FEW)
    for tuned in ({}, {"sft": []}):
        with pytest.raises(ConfigError, match="at least one model"):
            compare_circuits(base, tuned, **FEW)
    with pytest.raises(ConfigError, match="delta_sweep"):
        compare_circuits(base, {"sft": sft}, delta_sweep=[1.0], **FEW)
    with pytest.raises(ConfigError, match="bootstrap"):
        compare_circuits(base, {"sft": sft}, bootstrap=0)
    with pytest.raises(UnknownNameError, match="grpo/1"):
        comparison["rl"]
    with pytest.raises(UnknownNameError, match="sft, grpo"):
        comparison.difference("grpo", "sft")


@pytest.mark.parametrize("method", ["patching", "attribution", "eap-ig"])
def test_models_are_compared_by_their_prompts_scores(method: str) -> None:
    base = tiny("qwen2")
    broken = copy.deepcopy(base)
    task = task_of_ids(12)
    first = compare(base, {"same": base}, task, method=method, size=3, **FEW)
    head = tuple(first.base.mask.nonzero()[0].tolist())
    zero_head(HeadSites(broken), *head)
    found = compare(base, {"broken": broken, "same": base}, task, method=method, size=3, **FEW)
    assert found["same"].retention.value == 1.0
    assert found["broken"].retention.value < 1.0
    assert found["broken"].mask_shift[head] < 0
    assert found.difference("broken", "same").vulnerable[0].heads[head]
    for circuit in (found.base, *found.tuned["broken"]):
        assert circuit.per_prompt is not None
        assert circuit.per_prompt.shape == (12, 2, 4)
        assert torch.allclose(circuit.per_prompt.mean(0), circuit.scores, atol=1e-5)


@pytest.mark.parametrize("method", ["patching", "attribution", "eap-ig"])
def test_a_prompts_scores_are_those_of_the_prompt_alone(method: str) -> None:
    from rlforget.circuits import Task, find

    model, task = tiny("llama"), task_of_ids(5)
    together = find(model, task, method, batch_size=3).per_prompt
    assert together is not None
    for index, pair in enumerate(task.pairs):
        alone = find(model, Task("one", [pair]), method).scores
        assert torch.allclose(together[index], alone, atol=1e-5)


def test_a_circuit_file_holds_its_prompts_scores(tmp_path: object) -> None:
    (one,) = made(1)
    path = f"{tmp_path}/circuit.json"
    one.save(path)
    loaded = Circuit.load(path)
    assert one.per_prompt is not None
    assert loaded.per_prompt is not None
    assert torch.equal(loaded.per_prompt, one.per_prompt)
