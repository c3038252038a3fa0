from __future__ import annotations

import pytest
import torch

from rlforget.errors import LayoutError
from rlforget.weights import Layout, Pair, TensorMeta, check_layout, merged_aliases, pair_up

SMALL = TensorMeta(torch.float32, (2,))


def layout(names: str, **aliases: str) -> Layout:
    return Layout("some weights", dict.fromkeys(names.split(), SMALL), aliases)


def test_equal_layouts_pair_in_the_order_of_the_first() -> None:
    assert pair_up(layout("a b c"), layout("c b a")) == [Pair(name, name, name) for name in "abc"]


def test_dropped_tied_name_is_no_fault() -> None:
    tied, dropped = layout("embed", head="embed"), layout("embed")
    assert pair_up(tied, dropped) == pair_up(dropped, tied) == [Pair("embed", "embed", "embed")]


def test_other_canonical_name_of_a_tied_tensor_is_no_fault() -> None:
    embed_first, head_first, head_only = layout("embed", head="embed"), layout("head", embed="head"), layout("head")
    assert pair_up(embed_first, head_first) == [Pair("embed", "embed", "head")]
    assert pair_up(embed_first, head_only) == [Pair("head", "embed", "head")]
    assert merged_aliases(pair_up(embed_first, head_first), embed_first, head_first) == {"head": "embed"}
    assert merged_aliases(pair_up(embed_first, head_only), embed_first, head_only) == {"embed": "head"}


def test_tensors_tied_on_one_side_pair_with_each_copy_on_the_other() -> None:
    tied, untied = layout("embed", head="embed"), layout("embed head")
    assert pair_up(tied, untied) == [Pair("embed", "embed", "embed"), Pair("head", "embed", "head")]
    assert pair_up(untied, tied) == [Pair("embed", "embed", "embed"), Pair("head", "head", "embed")]
    assert merged_aliases(pair_up(tied, untied), tied, untied) == {}


def test_third_name_of_a_tensor_untied_elsewhere_belongs_to_neither() -> None:
    tied, untied = layout("embed", head="embed", extra="embed"), layout("embed head")
    assert merged_aliases(pair_up(tied, untied), tied, untied) == {}


def test_every_difference_is_listed_by_name() -> None:
    before = Layout("old", {"gone": SMALL, "wide": SMALL, "half": SMALL, "same": SMALL}, {})
    after = Layout(
        "new",
        {
            "wide": TensorMeta(torch.float32, (3,)),
            "half": TensorMeta(torch.bfloat16, (2,)),
            "same": SMALL,
            "added": SMALL,
        },
        {},
    )
    with pytest.raises(LayoutError) as caught:
        check_layout(before, after)
    message = str(caught.value)
    assert "1 missing: gone" in message
    assert "1 extra: added" in message
    assert "1 resized: wide [2] -> [3]" in message
    assert "1 retyped: half torch.float32 -> torch.bfloat16" in message
    assert "same" not in caught.value.found
    check_layout(before, before)


def test_long_lists_are_cut() -> None:
    many = Layout("old", {f"layer{i}": SMALL for i in range(400)}, {})
    with pytest.raises(LayoutError, match=r"400 missing: layer0, .* and 395 more") as caught:
        check_layout(many, layout("a"))
    assert len(str(caught.value)) < 400
