from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from rlforget_kernels.common.exact_sums import exponent_of, power_of_two, segment_sums
from tests.kernels.strategies import generator, same_bits, seeds

values = st.floats(0, 1e300) | st.floats(0, 1) | st.sampled_from([0.0, 5e-324, math.inf])


@given(st.lists(st.lists(values, max_size=30), min_size=1, max_size=5), seeds)
def test_sums_know_no_order_and_no_neighbours(segments: list[list[float]], seed: int):
    ends = torch.tensor([len(segment) for segment in segments]).cumsum(0).tolist()
    found = segment_sums(torch.tensor([*itertools.chain(*segments)], dtype=torch.float64), ends)
    for segment, total in zip(segments, found, strict=True):
        terms = torch.tensor(segment, dtype=torch.float64)
        shuffled = terms[torch.randperm(len(terms), generator=generator(seed))]
        assert same_bits(segment_sums(shuffled, [len(terms)])[0], total)
        exact = math.fsum(segment)
        slack = len(segment) ** 2 * 2.0**-60 * max(segment, default=0.0) + 2.0**-52 * exact + 2.0**-940
        assert total == exact or abs(total.item() - exact) <= slack


@given(st.integers(-900, 1022), st.floats(1, 2, exclude_max=True))
def test_powers(exponent: int, fraction: float):
    power = power_of_two(torch.tensor([exponent]))
    assert power.item() == math.ldexp(1.0, exponent)
    assert exponent_of(power * fraction).item() == exponent


def test_exponents_at_the_ends():
    ends = torch.tensor([0.0, 5e-324, math.inf], dtype=torch.float64)
    assert exponent_of(ends).tolist() == [-900, -900, 1024]
