from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.delta_matmul import delta_matmul
from rlforget_kernels.delta_matmul.reference import difference
from rlforget_kernels.low_rank import low_rank
from rlforget_kernels.project import project, reference
from tests.gpu.placement import on_device
from tests.kernels.matrices import basis, norm, pair, pairs, ranks
from tests.kernels.strategies import same_bits, seeds

pytestmark = pytest.mark.gpu
BOUND = {False: 2.0**-15, True: 2.0**-43}


@given(both=pairs(), ranks=st.tuples(ranks, ranks), seed=seeds, float64=st.booleans())
@settings(max_examples=200)
def test_is_close_to_exact(both: tuple[Tensor, Tensor], ranks: tuple[int, int], seed: int, float64: bool):
    u, v = (basis(rows, rank, seed) for rows, rank in zip(both[0].shape, ranks, strict=True))
    before, after = map(on_device, both)
    (core,), energy = project([before], [after], [u.cuda()], [v.cuda()], float64)
    (exact,), _ = reference.project([both[0]], [both[1]], [u], [v], float64=True)
    delta = norm(difference(*both, float64))
    assert norm(core.cpu().double() - exact) <= BOUND[float64] * norm(u) * delta * norm(v)
    assert energy[0, 0].sqrt().item() == pytest.approx(delta, rel=2.0**-18)
    (product,), _ = delta_matmul([before.mT], [after.mT], [u.cuda()], float64)
    exact = difference(*both, float64).mT @ u.double()
    assert norm(product.cpu().double() - exact) <= BOUND[float64] * norm(u) * delta


def test_lists_layouts_and_runs_do_not_change_the_bits():
    pairs = [[side.cuda() for side in pair(torch.bfloat16, (1500, 700), k)] for k in range(30)]
    u, v = basis(1500, 64, 1).cuda(), basis(700, 64, 2).cuda()
    before, after = map(list, zip(*pairs, strict=True))
    cores, energy = project(before, after, [u] * 30, [v] * 30)
    for _ in range(3):
        again, energies = project(before, after, [u] * 30, [v] * 30)
        assert all(same_bits(one, other) for one, other in zip(cores, again, strict=True))
        assert same_bits(energy, energies)
    for k in (0, 29):
        (single,), _ = project([before[k].mT.contiguous().mT], [after[k]], [u], [v])
        assert same_bits(single, cores[k])


def test_low_rank_finds_what_the_cpu_finds():
    before, after = pair(torch.float32, (300, 200), 0)
    (ours,) = low_rank([before.cuda()], [after.cuda()], 8, float64=True)
    (theirs,) = low_rank([before], [after], 8, float64=True)
    assert torch.allclose(ours.s.cpu(), theirs.s, rtol=1e-9)
    assert torch.allclose(ours.error_bound.cpu(), theirs.error_bound, rtol=1e-6)
