from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common.launch import launch
from rlforget_kernels.common.tables import TRITON_TYPE, find_tile, number_at, pointer_at, tables

SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=8)


@triton.jit
def double_kernel(
    rows_ptr, owners_ptr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write twice the source, and the tensor's number."""
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tl.program_id(0).to(tl.int64), COLUMNS, BLOCK)
    offset = base + tl.arange(0, BLOCK)
    values = tl.load(pointer_at(row_ptr, 0, TYPE, ALIGNED) + offset, mask=offset < numel)
    doubled = (2 * values + number_at(row_ptr, 2)).to(TYPE)
    tl.store(pointer_at(row_ptr, 1, TYPE, ALIGNED) + offset, doubled, mask=offset < numel)


def source(size: int, dtype: torch.dtype, aligned: bool) -> Tensor:
    return torch.arange(size + 1).to(dtype)[0 if aligned else 1 :][:size]


@given(SIZES, st.data())
def test_every_tensor_is_served_by_its_own_tiles(sizes: list[int], data: st.DataObject):
    dtypes = data.draw(st.lists(st.sampled_from([torch.int16, torch.int32]), min_size=len(sizes), max_size=len(sizes)))
    aligned = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    sources = [source(*kind) for kind in zip(sizes, dtypes, aligned, strict=True)]
    targets = [torch.zeros_like(tensor) for tensor in sources]
    listed = tables((sources, targets), 64, [list(range(len(sizes)))])
    assert sorted(member for table in listed for member in table.members) == list(range(len(sizes)))
    for table in listed:
        assert table.tiles == sum(triton.cdiv(sizes[member], 64) for member in table.members)
        types = {"TYPE": TRITON_TYPE[table.dtypes[0]], "BLOCK": 64}
        launch(double_kernel, table.tiles, table.rows, table.owners, **table.constexprs, **types)
    for position, (tensor, target) in enumerate(zip(sources, targets, strict=True)):
        assert torch.equal(target, 2 * tensor + position)


def test_tensors_share_a_launch_by_dtypes_alignment_and_kind():
    tensors = [source(5, *kind) for kind in [(torch.int16, True), (torch.int16, False), (torch.int32, True)] * 3]
    listed = tables([tensors], {2: 8, 4: 4}, kinds=[0] * 6 + [1] * 3)
    assert [table.members for table in listed] == [(0, 3), (1, 4), (2, 5), (6,), (7,), (8,)]
    assert [table.aligned for table in listed] == [True, False, True] * 2
    assert [table.kind for table in listed] == [0] * 3 + [1] * 3
    assert [table.first for table in listed[:3]] == [(0, 1, 2), (0, 1, 2), (0, 2, 4)]


def test_columns_behind():
    tensors = [torch.arange(5), torch.arange(0), torch.arange(9)]
    (table,) = tables([tensors], 4, [[7, 8, 9]])
    assert table.owners.tolist() == [0, 0, 2, 2, 2]
    assert table.starts.tolist() == [0, 2, 2]
    assert table.ends.tolist() == [2, 2, 5]
    assert table.rows[:, -1].tolist() == [7, 8, 9]
    longer = table.extended(tensors)
    assert longer.rows[:, -1].tolist() == [tensor.data_ptr() for tensor in tensors]
    assert longer.constexprs == {"COLUMNS": 6, "ALIGNED": True}
    (table,) = tables([tensors], 4, extents=[1, 1, 8])
    assert table.first == (0, 1, 2, 4)


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match="zip"):
        tables(([torch.ones(1)], []), 4)
