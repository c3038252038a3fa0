"""The sentences: their numbers are the results' numbers, and they claim nothing that the numbers do not say."""

from __future__ import annotations

import re
from statistics import fmean
from typing import Any

from rlforget.report import story
from rlforget.report.over_seeds import OverSeeds, over_seeds
from rlforget.report.results import parse_results


def found_in(results: dict[str, Any]) -> OverSeeds:
    return over_seeds(parse_results(results))


def sentences(results: dict[str, Any]) -> list[str]:
    return story.story(found_in(results))


def repair(results: dict[str, Any], rule: str, fraction: float | None, key: str) -> float:
    """The mean over the seeds of one number of one repair."""
    return fmean(
        one[key]
        for run in results["runs"]
        for one in run["repairs"]
        if (one["rule"], one["fraction"]) == (rule, fraction)
    )


def set_repairs(results: dict[str, Any], regained: float, kept: float) -> None:
    for run in results["runs"]:
        for one in run["repairs"]:
            one.update(regained=regained, kept=kept)


def test_five_sentences_hold_the_means(results: dict[str, Any]) -> None:
    trained, lost, where, undone, cost = sentences(results)
    runs = results["runs"]

    def reward(stage: int, domain: str) -> float:
        return fmean(run["stages"][stage]["rewards"][domain] for run in runs)

    assert "base → code → math → qa → writing" in trained
    assert f"code by {reward(1, 'code') - reward(0, 'code'):.2f}" in trained
    assert f"writing by {reward(4, 'writing') - reward(3, 'writing'):.2f}" in trained
    assert lost.startswith("While qa and writing were trained, ")
    for domain in ("code", "math"):
        assert f"{domain} fell from {reward(2, domain):.2f} to {reward(4, domain):.2f}" in lost
    kinds = [run["stages"][stage]["delta"]["kinds"] for run in runs for stage in (3, 4)]
    squares = {kind: sum(one[kind]["l2"] ** 2 for one in kinds) for kind in kinds[0]}
    assert f"{squares['mlp'] / sum(squares.values()):.0%} lies in the mlp weights" in where
    dense = [repair(results, "dense subspace", None, key) for key in ("regained", "kept", "norm_share")]
    assert f"dense subspace gave back {dense[0]:.0%} of what was lost" in undone
    assert f"(a random subspace {repair(results, 'random subspace', None, 'regained'):.0%})" in undone
    assert "the best of 6 such choices" in undone
    assert f"(as many random ones {repair(results, 'random', 0.05, 'regained'):.0%})" in undone
    assert f"dense subspace kept {dense[1]:.0%}, moving {dense[2]:.0%} of the later change's norm" in cost
    again = [repair(results, "refresh", None, key) for key in ("regained", "kept")]
    assert f"training again (refresh) gave back {again[0]:.0%} and kept {again[1]:.0%}" in cost


def test_sft_and_rl_are_told_above_their_plots(results: dict[str, Any]) -> None:
    compared = found_in(results).comparison
    assert compared is not None
    for method, name in (("sft", "SFT"), ("grpo", "RL")):
        mean = fmean(run["sft_and_rl"][method]["rewards"]["writing"] for run in results["runs"])
        said = story.target_finding(compared)
        assert f"{name} reached {mean:.2f}" in said or f"{name} {mean:.2f}" in said


def test_the_best_is_the_highest_of_the_lower_of_both(results: dict[str, Any]) -> None:
    set_repairs(results, 0.5, 0.5)
    for run in results["runs"]:
        for one in run["repairs"]:
            if (one["rule"], one["fraction"]) == ("fisher", 0.02):
                one.update(regained=0.7, kept=0.6)
            if one["rule"] == "two_fisher":
                one.update(regained=1.0, kept=0.1)
            if one["rule"] == "random":
                one.update(regained=0.9, kept=0.9)  # a control is never the hero
    undone, cost = sentences(results)[3:]
    assert "old bits at the top 2% of the coordinates by fisher, the best of 6 such choices, 70%" in undone
    assert "as many random ones 90%" in undone
    assert "fisher 2% kept 60%" in cost
    assert "no control gives back more than 90%" in story.repairs_finding(found_in(results))


def test_a_repair_that_fails_is_told_as_such(results: dict[str, Any]) -> None:
    set_repairs(results, -0.25, 0.4)
    undone, cost = sentences(results)[3:]
    assert "gave back −25% of what was lost" in undone
    assert "kept 40%" in cost


def test_rewards_that_rise_or_stay_are_not_told_as_lost(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        run["stages"][2]["rewards"].update(code=0.5, math=0.601)
        run["stages"][4]["rewards"].update(code=0.75, math=0.599)
    assert "code rose from 0.50 to 0.75 and math stayed at 0.60" in sentences(results)[1]


def test_a_stage_that_lost_its_own_domain_is_not_told_as_raised(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        run["stages"][1]["rewards"]["code"] = 0.0
    trained = sentences(results)[0]
    assert re.search(r"changed its own domain's reward: code by −0\.\d\d, math by \+0\.\d\d,", trained)


def test_the_further_one_is_named_either_way(results: dict[str, Any]) -> None:
    compared = found_in(results).comparison
    assert compared is not None
    assert story.kl_finding(compared).startswith("SFT went further from the start: KL 0.5")
    for run in results["runs"]:
        both = run["sft_and_rl"]
        both["grpo"], both["sft"] = both["sft"], both["grpo"]
    swapped = found_in(results).comparison
    assert swapped is not None
    assert story.kl_finding(swapped).startswith("RL went further from the start: KL 0.5")


def test_overlap_is_told_in_times_of_chance(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        for position, pair in enumerate(run["overlaps"]):
            pair["coordinates"].update(jaccard=0.3, jaccard_by_chance=0.3)
            pair["neurons"].update(jaccard=0.1 * (1 + position), jaccard_by_chance=0.1)
    assert story.overlap_finding(found_in(results)) == (
        "The overlap of the stages' changed coordinates is 1.0 times chance, that of their top neurons 1.0 to 6.0 times"
    )


def test_a_stage_says_how_much_it_changed_and_where_most(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        delta = run["stages"][3]["delta"]
        delta["total"].update(sparsity=0.999, l2=5.0)
        for tensor in delta["tensors"].values():
            tensor["l2"] = 0.0
        delta["tensors"]["model.layers.2.mlp.up_proj.weight"]["l2"] = 4.0
        delta["tensors"]["model.layers.2.self_attn.q_proj.weight"]["l2"] = 3.0
    stage = found_in(results).stages[3]
    assert stage.delta is not None
    assert story.delta_finding(stage.name, stage.delta) == (
        "The qa stage changed 0.1% of the coordinates, by a norm of 5.00; up_proj of layer 2 holds 64% of its square"
    )
