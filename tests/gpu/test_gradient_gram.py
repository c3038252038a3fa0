from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget_kernels.gradient_gram import gradient_gram_, reference
from tests.gpu.placement import on_device
from tests.kernels.strategies import generator
from tests.kernels.test_gradient_gram import (
    FORMS,
    TOKENS,
    Side,
    Size,
    added,
    assert_close,
    cases,
    side,
    sizes,
    tokens,
)

pytestmark = pytest.mark.gpu


def added_there(*sides: Side, start: float = 0.0, form: str = "auto") -> torch.Tensor:
    """What the operator makes of a matrix of `start` on the device."""
    held = [None if tensor is None else on_device(tensor) for one in sides for tensor in one]
    gram = torch.full((len(sides[0][1]), len(sides[-1][1])), start, dtype=torch.float64, device="cuda")
    gradient_gram_(gram, *held, form=form)
    return gram.cpu()


@FORMS
@given(sides=cases(sizes, whole=False))
@settings(max_examples=100)
def test_error_against_float64(form: str, sides: list[Side]):
    assert_close(added_there(*sides, form=form), *sides)


@FORMS
@given(sides=cases(sizes, whole=True), start=st.sampled_from([0.0, -7.0]))
@settings(max_examples=100)
def test_whole_numbers_are_exact(form: str, sides: list[Side], start: float):
    assert torch.equal(added_there(*sides, start=start, form=form), added(reference, *sides, start=start))


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_give_the_same_bits(form: str, dtype: torch.dtype):
    one = side((200, 128, 512, 256), 0, dtypes=(dtype, dtype))
    assert torch.equal(added_there(one, form=form), added_there(one, form=form))


@FORMS
def test_error_is_that_of_float32(form: str):
    one = side((24, 128, 300, 200), 0)
    expected = added(reference, one)
    length = expected.diagonal().sqrt()
    error = (added_there(one, form=form) - expected).abs() / (length[:, None] * length)
    assert error.max() < 1e-6


@pytest.mark.parametrize("size", [(40, 30, 19, 70), (1030, 3, 19, 40)])
def test_tokens(size: Size):
    samples, length, _, features = size
    one, other = tokens(samples, length, features, 0), tokens(9, 70, features, 1)
    dense = side((5, 9, TOKENS, features), 2, whole=True)
    for sides in ([one], [one, other], [one, dense], [dense, one]):
        assert torch.equal(added_there(*sides), added(reference, *sides))


@FORMS
def test_a_layer_of_3b_parameters_in_bounded_memory(form: str):
    random = generator(0)
    x, y = (torch.randn(256, 128, size, generator=random).bfloat16().cuda() for size in (2048, 2048))
    gram = torch.zeros(256, 256, dtype=torch.float64, device="cuda")
    gradient_gram_(gram, x, y, form=form)
    gram.zero_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradient_gram_(gram, x, y, form=form)
    assert torch.cuda.max_memory_allocated() - before < 64 << 20
    picked = torch.tensor([0, 3, 255])
    rows = torch.bmm(y[picked].double().mT, x[picked].double()).flatten(1)
    torch.testing.assert_close(gram[picked][:, picked.cuda()], rows @ rows.T, rtol=1e-5, atol=1e-6 * float(gram.max()))
