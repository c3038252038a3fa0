"""Blocks of tensors: indices in them and in the whole, and the runs that both share."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from rlforget.weights import open_weights
from rlforget.weights.box import Box


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    offsets = tuple(draw(st.integers(0, size)) for size in shape)
    sizes = tuple(draw(st.integers(0, size - at)) for size, at in zip(shape, offsets, strict=True))
    return Box(shape, offsets, sizes)


@given(boxes())
def test_indices_lead_both_ways(box: Box) -> None:
    whole = torch.arange(prod(box.shape)).view(box.shape)
    expected = whole[box.slices].flatten()
    here = torch.arange(box.numel)
    assert box.numel == expected.numel()
    assert torch.equal(box.to_whole(here), expected)
    assert torch.equal(box.to_block(expected), here)
    assert torch.equal(whole.flatten()[box.holds(whole.flatten())], expected)


@given(boxes())
def test_runs_cover_the_block_in_order(box: Box) -> None:
    whole = torch.arange(prod(box.shape)).view(box.shape)
    runs = list(box.runs())
    assert torch.equal(
        torch.cat([whole.flatten()[:0], *(whole.flatten()[there] for _, there in runs)]), whole[box.slices].flatten()
    )
    assert [here.start for here, _ in runs] == [0, *(here.stop for here, _ in runs)][: len(runs)]
    assert all(there.stop < later.start for (_, there), (_, later) in pairwise(runs))  # none is cut


@given(boxes(), st.data())
def test_runs_of_a_range_are_what_of_it_the_block_holds(box: Box, data: st.DataObject) -> None:
    whole = torch.arange(prod(box.shape))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    held = whole.view(box.shape)[box.slices].flatten()
    expected = held[(held >= start) & (held < stop)]
    runs = list(box.runs(start, stop))
    assert torch.equal(torch.cat([whole[:0], *(whole[there] for _, there in runs)]), expected)
    assert torch.equal(torch.cat([held[:0], *(held[here] for here, _ in runs)]), expected)


@given(boxes())
def test_a_block_is_read_as_it_lies(box: Box) -> None:
    whole = torch.arange(prod(box.shape), dtype=torch.float32).view(box.shape)
    weights = open_weights({"w": whole})
    assert torch.equal(weights.block("w", box), whole[box.slices])
