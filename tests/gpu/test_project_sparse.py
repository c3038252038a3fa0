from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget_kernels.project_sparse import project_sparse, reference
from tests.kernels.matrices import basis, norm, ranks, shapes
from tests.kernels.strategies import same_bits, seeds
from tests.kernels.test_project_sparse import BOUND, PRECISIONS, changes, densities

pytestmark = pytest.mark.gpu


@given(
    shape=shapes,
    density=densities,
    ranks=st.tuples(ranks, ranks),
    seed=seeds,
    dtype=st.sampled_from([torch.int32, torch.int64]),
    precision=st.sampled_from(PRECISIONS),
)
@settings(max_examples=150)
def test_is_close_to_exact(
    shape: tuple[int, int],
    density: float,
    ranks: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    precision: tuple[torch.dtype, bool],
):
    held, float64 = precision
    indices, values = changes(shape, density, seed, dtype, held)
    u, v = (basis(rows, rank, seed + 1) for rows, rank in zip(shape, ranks, strict=True))
    arguments = indices.cuda(), values.cuda(), shape, u.cuda(), v.cuda(), float64
    core = project_sparse(*arguments)
    exact = reference.project_sparse(indices, values, shape, u, v, float64)
    assert norm(core.cpu() - exact) <= BOUND[float64] * norm(u) * norm(values) * norm(v)
    assert same_bits(project_sparse(*arguments), core)
