"""The methods of scoring heads, against a plain loop and against each other."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.circuits import METHODS, METRICS, HeadSites, Pair, Task, find
from rlforget.circuits.ablation import ABLATIONS, Sources
from rlforget.circuits.finding import task_batches
from rlforget.circuits.forward import answer_logits
from rlforget.circuits.trial import Trial
from rlforget.domains import miniature
from rlforget.errors import ConfigError, UnknownNameError
from tests.circuits.tiny_models import NAMES, task_of_ids, tiny, with_separate_keys, zero_head

EXACT = ("patching", "attribution", "eap-ig")


def scores(model: Any, method: str, task: Task | None = None, **options: Any) -> Tensor:
    return find(model, task or task_of_ids(), method, **options).scores


@torch.no_grad()
def one_by_one(model: Any, task: Task, ablation: str, positions: str) -> Tensor:
    """The truth: for each prompt alone, one forward with a hook a head."""
    sites = HeadSites(model)
    (layers, heads), metric = sites.shape, METRICS["log_prob_difference"]
    batches = list(task.encode(None, 1))
    sources = []
    for batch in batches:
        with sites.capture() as found:
            model(input_ids=batch.counterfactual_ids)
        sources.append(list(found))
    rows = [[_row(b, positions) for b in batches]]
    total = torch.zeros(layers, heads)
    for layer in range(layers):
        flat = torch.cat([s[layer][0, row] for s, row in zip(sources, rows[0], strict=True)])
        for head in range(heads):
            for batch, source, row in zip(batches, sources, rows[0], strict=True):
                new = {"resample": source[layer][0, row, head], "mean": flat.mean(0)[head], "zero": 0.0}[ablation]

                def hook(module: nn.Module, args: Any, new: Any = new, row: Any = row, head: int = head) -> Any:
                    z = args[0].clone()
                    z.unflatten(-1, (heads, -1))[0, row, head] = new
                    return (z,)

                clean = metric(model(input_ids=batch.clean_ids).logits, batch)
                handle = sites.modules[layer].register_forward_pre_hook(hook)
                total[layer, head] += (clean - metric(model(input_ids=batch.clean_ids).logits, batch)).sum()
                handle.remove()
    return total / len(batches)


def _row(batch: Any, positions: str) -> slice:
    return slice(int(batch.positions.min()), None) if positions == "last" else slice(None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_patching_equals_one_hooked_forward_a_head_and_prompt(name: str, ablation: str, positions: Any) -> None:
    model, task = tiny(name), task_of_ids()
    expected = one_by_one(model, task, ablation, positions)
    found = find(model, task, "patching", ablation=ablation, positions=positions)
    assert found.settings["skip_layers"] is True
    assert found.settings["skip_tokens"] is True
    torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-5)


HOWEVER: list[dict[str, Any]] = [
    {},
    {"skip_layers": False},
    {"skip_tokens": False},
    {"skip_layers": False, "skip_tokens": False},
    {"tokens_at_once": 1},
    {"tokens_at_once": 70},
]


@cache
def plainly(name: str, positions: Any) -> Tensor:
    """The scores of patching that leaves nothing out, a prompt and a token at a time."""
    model, task = tiny(name, layers=3), with_a_common_beginning()
    plain = {"skip_layers": False, "skip_tokens": False, "tokens_at_once": 1}
    return scores(model, "patching", task, positions=positions, batch_size=1, **plain)


@pytest.mark.parametrize("options", HOWEVER)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("positions", ["all", "last", ((-2, -1),)])
def test_patching_gives_the_same_however_it_is_run(name: str, positions: Any, options: dict[str, Any]) -> None:
    model, task = tiny(name, layers=3), with_a_common_beginning()
    found = find(model, task, "patching", positions=positions, batch_size=4, **options)
    assert found.settings["skip_tokens"] is options.get("skip_tokens", True)
    torch.testing.assert_close(found.scores, plainly(name, positions), rtol=1e-4, atol=1e-5)


def with_a_common_beginning() -> Task:
    """Pairs of several lengths whose counterfactuals differ in their last three tokens alone."""
    pairs = task_of_ids(8, lengths=(5, 7, 9)).pairs
    return Task("late", [replace(p, counterfactual=(*p.clean[:-3], *p.counterfactual[-3:])) for p in pairs])


def test_tokens_that_nothing_changes_are_not_run_again() -> None:
    model, lengths = tiny("qwen2", layers=4), []
    model.model.layers[3].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    task = Task("three", [p for p in with_a_common_beginning().pairs if len(p.target) == 1])
    find(model, task, "patching", batch_size=9)
    assert lengths.count(3) == 4 + 2  # a run a layer, and two trials
    lengths.clear()
    find(model, task, "patching", positions="last", batch_size=9)
    assert lengths.count(1) == 4 + 2


@pytest.mark.parametrize("fault", ["none kept", "other tokens forgotten"])
def test_models_whose_keys_and_values_say_not_all_are_run_from_the_start(fault: str) -> None:
    model, task = tiny("qwen2", layers=3), with_a_common_beginning()
    if fault == "none kept":
        forward = model.forward
        model.forward = lambda input_ids, attention_mask: forward(input_ids, attention_mask=attention_mask)
    else:  # a layer that reads all tokens in another way than by its keys and values
        model.model.layers[1].mlp.register_forward_hook(
            lambda module, args, output: output + args[0].cumsum(1) / args[0].shape[1]
        )
    found = find(model, task, "patching")
    assert found.settings["skip_tokens"] is False
    torch.testing.assert_close(
        found.scores, scores(model, "patching", task, skip_layers=False, skip_tokens=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("method", "forwards"), [("attribution", 3), ("eap-ig", 7), ("patching", 5)])
def test_no_pass_is_made_twice(method: str, forwards: int) -> None:
    """One each for the counterfactual prompts, for all heads replaced and for the clean prompts, eap-ig's last point.

    Patching takes one more for a layer's heads, and one to see that layers may be left out.
    """
    model, task = tiny("qwen2", layers=1), task_of_ids(4, lengths=(5,))
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    find(model, task, method)
    assert rows[0] == 1
    assert len(rows) - 1 == forwards


TWO_LENGTHS = Task(
    "two lengths",
    [
        Pair((1, 2, 3, 4), (1, 7, 8, 3, 4), (5,), (6,)),
        Pair((9, 2, 3, 3, 3, 4), (9, 8, 3, 3, 3, 4), (5, 7), (6, 7)),
        Pair((1, 5, 6, 4), (1, 2, 4), (9,), (6,)),
    ],
)


@pytest.mark.parametrize("batch_size", [1, 9])
def test_in_prompts_of_two_lengths_a_head_takes_its_output_where_the_token_stands_that_answers(batch_size: int) -> None:
    model, places = tiny("qwen2"), [[0, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 2]]
    sites, metric = HeadSites(model), METRICS["log_prob_difference"]
    expected = torch.zeros(2, 4)
    for pair, place in zip(TWO_LENGTHS.pairs, places, strict=True):
        clean, other = (torch.tensor([[*prompt, *pair.target[:-1]]]) for prompt in (pair.clean, pair.counterfactual))
        (batch,) = Task("one", [pair]).encode(None, 1)
        with torch.no_grad(), sites.capture() as found:
            whole = metric(model(input_ids=clean).logits[:, -batch.kept :], batch).sum()
            model(input_ids=other)
        source = [z[:, place] for z in found]
        for layer, head in torch.ones(2, 4).nonzero().tolist():

            def edit(_: int, z: Tensor, new: Tensor = source[layer], head: int = head) -> Tensor:
                return torch.where(torch.arange(4)[:, None] == head, new, z)

            with torch.no_grad(), sites.edited(edit, layers=[layer]):
                expected[layer, head] += whole - metric(model(input_ids=clean).logits[:, -batch.kept :], batch).sum()
    found = scores(model, "patching", TWO_LENGTHS, batch_size=batch_size)
    torch.testing.assert_close(found, expected / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("method", ["attribution", "eap-ig"])
def test_in_prompts_of_two_lengths_gradients_equal_patching_too(method: str, ablation: str) -> None:
    options: dict[str, Any] = {"ablation": ablation, "batch_size": 1}
    patched = scores(LinearModel(), "patching", TWO_LENGTHS, **options)
    estimated = scores(LinearModel(), method, TWO_LENGTHS, position_sum="signed", **options)
    torch.testing.assert_close(estimated, patched, rtol=1e-4, atol=1e-4)
    model = tiny("llama")
    one, all_ = (scores(model, method, TWO_LENGTHS, ablation=ablation, batch_size=size) for size in (1, 9))
    torch.testing.assert_close(one, all_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_layers_that_share_more_than_their_input_are_run_again(strict: bool) -> None:
    model = tiny("qwen2", layers=3)
    first, last = model.model.layers[0], model.model.layers[2]
    kept: list[Tensor] = []
    first.mlp.register_forward_hook(lambda module, args, output: kept.append(output))
    # The last layer reads something of the first one that is not its own input, and is at a loss without.
    last.mlp.register_forward_hook(lambda module, args, output: output + (kept.pop() if kept or strict else 0.0))
    found = find(model, task_of_ids(2), "patching")
    assert found.settings["skip_layers"] is False
    torch.testing.assert_close(found.scores, scores(model, "patching", task_of_ids(2), skip_layers=False))


class LinearAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 2
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.v_proj(x)
        weights = torch.ones(x.shape[1], x.shape[1]).tril()
        return self.o_proj(weights @ z)  # type: ignore[no-any-return]


class LinearModel(nn.Module):
    """Layers that are linear in the embeddings, so that any first-order estimate is exact."""

    def __init__(self, width: int = 8, vocabulary: int = 29) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.attn_0, self.attn_1 = LinearAttention(width), LinearAttention(width)
        self.lm_head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.embed(input_ids)
        for attention in (self.attn_0, self.attn_1):
            x = x + attention(x)
        return type("Output", (), {"logits": self.lm_head(x)})


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("method", ["attribution", "eap-ig"])
@pytest.mark.parametrize("positions", ["all", [(1, 3)]])
def test_in_a_linear_model_gradients_equal_patching(method: str, ablation: str, positions: Any) -> None:
    model, task = LinearModel(), task_of_ids(lengths=(5,))
    options: dict[str, Any] = {"ablation": ablation, "positions": positions, "batch_size": 1}
    patched = scores(model, "patching", task, **options)
    assert float(patched[0].abs().min()) > 1e-3  # the last layer at earlier positions has no say
    estimated = scores(model, method, task, position_sum="signed", **options)
    torch.testing.assert_close(estimated, patched, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_limit_of_small_replacements(name: str) -> None:
    """(a − source) · gradient is the slope of the metric along the way to the source."""
    model, task = tiny(name).double(), task_of_ids(3)
    estimated = scores(model, "attribution", task, position_sum="signed")
    sites = HeadSites(model)
    (batch,) = task.encode(None, 3)
    metric, share = METRICS["log_prob_difference"], 1e-2  # norms are in float32 even here
    inputs = {"attention_mask": batch.attention_mask, "position_ids": (batch.attention_mask.cumsum(1) - 1).clamp_min(0)}
    with torch.no_grad():
        with sites.capture() as source:
            model(input_ids=batch.counterfactual_ids, **inputs)
        values = []
        for sign in (1, -1):

            def nudge(layer: int, z: Tensor, sign: int = sign) -> Tensor:
                moved = z.clone()
                if layer == 1:
                    moved[:, :, 2] += sign * share * (source[1][:, :, 2] - z[:, :, 2])
                return moved

            with sites.edited(nudge):
                values.append(metric(model(input_ids=batch.clean_ids, **inputs).logits, batch).mean())
    slope = (values[1] - values[0]) / (2 * share)
    assert float(estimated[1, 2]) == pytest.approx(float(slope), rel=1e-2)


def test_more_steps_at_the_clean_end_alone_are_attribution() -> None:
    model = tiny("llama")
    one = scores(model, "eap-ig", steps=1)
    torch.testing.assert_close(one, scores(model, "attribution"))


def test_the_paper_s_points_include_the_clean_end_and_leave_the_other_out() -> None:
    """Right less left, times the number of steps, is the clean end's term less the counterfactual end's."""
    model, kind = tiny("qwen2"), {"position_sum": "signed"}
    right, left = (scores(model, "eap-ig", steps=4, rule=rule, **kind) for rule in ("right", "left"))
    clean, other = scores(model, "attribution", **kind), scores(model, "eap-ig", steps=1, rule="left", **kind)
    torch.testing.assert_close(4 * (right - left), clean - other, rtol=1e-4, atol=1e-5)


def test_integration_converges_whatever_the_rule() -> None:
    model = tiny("qwen2")
    fine = [scores(model, "eap-ig", steps=64, rule=rule, position_sum="signed") for rule in ("right", "midpoint")]
    coarse = scores(model, "eap-ig", steps=2, position_sum="signed")
    assert float((fine[0] - fine[1]).abs().max()) < 0.2 * float((coarse - fine[1]).abs().max())


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_along_a_layer_s_own_outputs_heads_add_up_to_the_layer(ablation: str) -> None:
    """Completeness: the integral over one layer's path is the effect of replacing all its heads at once."""
    model, task = tiny("llama"), task_of_ids(3)
    sites = HeadSites(model)
    found = scores(
        model, "eap-ig", task, ablation=ablation, path="activations", rule="midpoint", steps=64, position_sum="signed"
    )
    (batch,) = task_batches(model, task)
    sources = Sources(model, sites, [batch], ablation)
    new, where = sources.of(batch), sources.replaced(batch)[..., None, None]
    metric = METRICS["log_prob_difference"]
    for layer in range(2):
        with torch.no_grad():
            clean = metric(answer_logits(model, batch), batch)
            with sites.edited(lambda at, z: torch.where(where, new[at], z), layers=[layer]):
                effect = clean - metric(answer_logits(model, batch), batch)
        assert float(found[layer].sum()) == pytest.approx(float(effect.mean()), rel=2e-2)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_for_other_sources_than_the_counterfactual_activations_are_the_better_path(ablation: str) -> None:
    model, tokenizer = miniature.load()
    task = Task.from_domain("qa", count=48)
    exact, inputs, activations = (
        find(model, task, method, tokenizer=tokenizer, ablation=ablation, **options).scores
        for method, options in (("patching", {}), ("eap-ig", {}), ("eap-ig", {"path": "activations"}))
    )
    assert spearman(exact, activations) > spearman(exact, inputs) + 0.05


def test_positions_do_not_cancel_unless_asked() -> None:
    model = tiny("qwen2")
    signed, dominant, absolute = (
        scores(model, "attribution", task_of_ids(1), position_sum=how) for how in ("signed", "dominant", "absolute")
    )
    assert bool((dominant.abs() >= signed.abs() - 1e-6)[signed * dominant > 0].all())
    assert bool((absolute >= dominant.abs() - 1e-6).all())
    assert not torch.allclose(dominant, signed, rtol=1e-2)
    last = {"positions": "last", "task": task_of_ids(lengths=(5,))}
    last["task"] = Task("one", [p for p in last["task"].pairs if len(p.target) == 1])
    torch.testing.assert_close(
        scores(model, "attribution", position_sum="signed", **last), scores(model, "attribution", **last)
    )


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", NAMES)
def test_a_head_that_is_not_read_scores_exactly_zero(method: str, name: str) -> None:
    model = tiny(name)
    zero_head(HeadSites(model), 1, 3)
    found = scores(model, method)
    assert float(found[1, 3].abs()) < 1e-6
    assert float(found.abs().median()) > 1e-3


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_shared_keys_and_values_make_no_difference(method: str, ablation: str) -> None:
    model = tiny("qwen2", kv_heads=2)
    expanded = with_separate_keys(model)
    ours, theirs = (scores(m, method, ablation=ablation) for m in (model, expanded))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_batch_size_changes_nothing_beyond_rounding(method: str, ablation: str, name: str) -> None:
    model, task = tiny(name), task_of_ids(7)
    one, three, all_ = (scores(model, method, task, ablation=ablation, batch_size=size) for size in (1, 3, 99))
    torch.testing.assert_close(one, all_, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(three, all_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", NAMES)
def test_padding_side_changes_nothing_beyond_rounding(method: str, name: str) -> None:
    model, task = tiny(name), task_of_ids(7)
    sites, metric = HeadSites(model.requires_grad_(False)), METRICS["log_prob"]
    left, right = (
        METHODS[method](Trial(model, sites, list(task.encode(None, 4, padding_side=side)), metric), seed=0)
        for side in ("left", "right")
    )
    torch.testing.assert_close(left.scores, right.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", EXACT)
def test_bfloat16_ranks_heads_as_float32_does(method: str) -> None:
    model, tokenizer = miniature.load()
    task = Task.from_domain("science", count=32)
    exact = find(model, task, method, tokenizer=tokenizer).scores
    coarse = find(copy.deepcopy(model).to(torch.bfloat16), task, method, tokenizer=tokenizer).scores
    assert spearman(exact, coarse) >= 0.95


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = [x.flatten().argsort().argsort().float() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def test_eap_ig_is_nearer_to_patching_than_plain_attribution() -> None:
    model, tokenizer = miniature.load()
    task = Task.from_domain("qa", count=48)
    exact, plain, integrated = (find(model, task, m, tokenizer=tokenizer).scores for m in EXACT)
    errors = [float((estimate - exact).norm() / exact.norm()) for estimate in (integrated, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_random_scores_are_the_seed_s_and_unit_normal() -> None:
    model = tiny("gpt2")
    one, again, other = (scores(model, "random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert math.isfinite(float(one.std()))


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("eap-ig", {"steps": 0}, "steps"),
        ("eap-ig", {"rule": "simpson"}, "rule"),
        ("eap-ig", {"path": "weights"}, "path"),
        ("eap-ig", {"position_sum": "max"}, "position_sum"),
        ("patching", {"tokens_at_once": 0}, "tokens_at_once"),
        ("patching", {"steps": 3}, r"one of tokens_at_once, skip_layers, skip_tokens; found 'steps'"),
        ("random", {"steps": 3}, "no option"),
    ],
)
def test_options_out_of_range_are_refused(method: str, options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        scores(tiny("qwen2"), method, **options)


def test_methods_are_listed_and_others_refused() -> None:
    assert list(METHODS) == ["patching", "attribution", "eap-ig", "masking", "random"]
    with pytest.raises(UnknownNameError, match="eap-ig"):
        scores(tiny("qwen2"), "guessing")
