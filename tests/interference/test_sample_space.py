"""Products with a tall stack of gradients, against float64."""

from __future__ import annotations

import pytest
import torch

from rlforget.interference import sample_space


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (513, 40), (5, 16385), (0, 4)])
def test_products(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    stack = torch.randn(rows, columns, generator=generator)
    v, y = torch.randn(columns, generator=generator), torch.randn(rows, generator=generator, dtype=torch.float64)
    exact = stack.double()
    product = sample_space.gram(stack)
    assert product.dtype == torch.float64
    assert torch.equal(product, product.T)
    torch.testing.assert_close(product, exact @ exact.T, rtol=1e-5, atol=1e-5 * columns**0.5)
    torch.testing.assert_close(sample_space.forward(stack, v), exact @ v.double(), rtol=1e-5, atol=1e-5 * columns**0.5)
    torch.testing.assert_close(
        sample_space.backward(stack, y), (y @ exact).float(), rtol=1e-5, atol=1e-5 * max(rows, 1) ** 0.5
    )


def test_a_view_of_a_wider_stack() -> None:
    whole = torch.randn(6, 50)
    part = whole[1:4, 5:25]
    torch.testing.assert_close(sample_space.gram(part), part.double() @ part.double().T, rtol=1e-5, atol=1e-5)
