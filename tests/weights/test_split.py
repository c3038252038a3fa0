"""Work is split among ranks without a gap or an overlap, and only where it is asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlforget.delta.file.line import WHOLE_LINE, share
from rlforget.delta.file.table import FileEntry
from rlforget.delta.scan import PIECE
from rlforget.weights import Layout, TensorMeta, ranks
from rlforget.weights.split import from_parts, part, parts, splitting, stretch, takes


def of_each(size: int, make: object) -> list[object]:
    """Let each rank of a world make something."""
    made = []
    with pytest.MonkeyPatch.context() as world, splitting():
        world.setattr(ranks, "world", lambda: size)
        for rank in range(size):
            world.setattr(ranks, "rank", lambda rank=rank: rank)
            made.append(make())  # type: ignore[operator]
    return made


@given(st.lists(st.integers(0, 100), max_size=20), st.integers(1, 9))
def test_stretches_follow_one_another_and_are_as_even_as_pieces_allow(sizes: list[int], size: int) -> None:
    places = list(range(len(sizes)))
    found = of_each(size, lambda: places[stretch(sizes)])
    assert [place for one in found for place in one] == places
    if sizes:
        assert all(sum(sizes[place] for place in one) <= sum(sizes) / size + max(sizes) for one in found)


def test_outside_ranks_work_alone() -> None:
    with pytest.MonkeyPatch.context() as world:
        world.setattr(ranks, "world", lambda: 4)
        world.setattr(ranks, "rank", lambda: 3)
        assert (parts(), part(), from_parts("a"), takes(1)) == (1, 0, ["a"], True)
        assert share(Layout("none", {}, {}), {}, {}, self_contained=False) == WHOLE_LINE
        with splitting():
            assert (parts(), part(), takes(1), takes(3)) == (4, 3, False, True)


@given(
    st.lists(st.tuples(st.sampled_from([torch.int8, torch.bfloat16, torch.float32]), st.integers(0, 3 * PIECE))),
    st.integers(2, 5),
    st.booleans(),
)
def test_each_place_on_the_line_is_written_by_one_rank(
    tensors: list[tuple[torch.dtype, int]], size: int, self_contained: bool
) -> None:
    metas = {str(number): TensorMeta(dtype, (numel,)) for number, (dtype, numel) in enumerate(tensors)}
    resized = TensorMeta(torch.int8, (PIECE + 1,)), TensorMeta(torch.int8, (PIECE + 2,))
    files = {"config.json": FileEntry("config.json", 3, 4)}
    found = of_each(
        size, lambda: share(Layout("some", metas, {}), {"w": resized}, files, self_contained=self_contained)
    )
    written = [one for one in found if len(one)]
    ends = sum(meta.numel for meta in metas.values()) + (PIECE + 1) * self_contained + PIECE + 2 + 7
    assert (written[0].start, written[-1].stop) == (0, ends)
    assert all(one.stop == other.start for one, other in pairwise(written))
