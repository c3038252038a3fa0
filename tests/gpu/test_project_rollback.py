from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget_kernels.project_rollback import project_rollback_, reference
from tests.gpu.placement import on_device
from tests.kernels.matrices import basis, layouts, norm, pair, ranks, shapes
from tests.kernels.strategies import FLOATS, generator, laid_out, same_bits, seeds
from tests.kernels.test_project_rollback import BOUND, assert_rounded_once, roundings

pytestmark = pytest.mark.gpu


@given(
    dtype=st.sampled_from(FLOATS),
    shape=shapes,
    ranks=st.tuples(ranks, ranks),
    layouts=st.tuples(layouts, layouts),
    tensor_seed=seeds,
    seed=roundings,
)
@settings(max_examples=150)
def test_is_close_to_exact(
    dtype: torch.dtype,
    shape: tuple[int, int],
    ranks: tuple[int, int],
    layouts: tuple[str, str],
    tensor_seed: int,
    seed: int | None,
):
    before, weight = pair(dtype, shape, tensor_seed, 0.1)
    u, v = (
        basis(rows, min(rank, rows), tensor_seed + 1, orthonormal=True) for rows, rank in zip(shape, ranks, strict=True)
    )
    shrinkage = torch.rand(u.shape[1], v.shape[1], generator=generator(tensor_seed))
    found = on_device(laid_out(weight, layouts[0]))
    again = on_device(laid_out(weight, layouts[1]))
    arguments = on_device(laid_out(before, layouts[1])), u.cuda(), v.cuda(), shrinkage.cuda()
    project_rollback_(found, *arguments, seed, 3)
    project_rollback_(again, *arguments, seed, 3)
    assert same_bits(found.cpu().contiguous(), again.cpu().contiguous())
    change = reference.correction(weight, before, u, v, shrinkage)
    error = BOUND * norm(weight.double() - before.double()) * norm(u) ** 2 * norm(v) ** 2
    assert_rounded_once(found.cpu(), weight, change, error + 1e-300, seed, 3)
