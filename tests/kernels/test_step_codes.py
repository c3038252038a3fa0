from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.step_codes import MAX_SHIFT, NIBBLES, PLANES, Coding, choose, cpu, gaps_between, pack, reference
from rlforget_kernels.step_codes import positions_of as places_of
from tests.kernels.strategies import DTYPES, changed_copy, densities, random_tensor, seeds, shapes

codings = st.builds(Coding, st.integers(NIBBLES, PLANES), st.integers(0, MAX_SHIFT))
widths = st.sampled_from([1, 2, 4, 8])


def bits(tensor: Any) -> np.ndarray:
    flat = as_bits(tensor).numpy()
    return flat.view(f"u{flat.itemsize}").copy()


@st.composite
def sides(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, bool]:
    before = random_tensor(draw(st.sampled_from(DTYPES)), draw(shapes), draw(seeds))
    after = changed_copy(before, draw(densities), draw(seeds))
    return bits(before), bits(after), before.dtype.is_floating_point


@st.composite
def numbers(draw: st.DrawFn) -> np.ndarray:
    """Numbers of all sizes, small ones above all, around the limits of the levels."""
    width = draw(widths)
    random = np.random.default_rng(draw(seeds))
    count = draw(st.one_of(st.integers(0, 5), st.integers(0, 3000)))
    lengths = random.integers(0, 8 * draw(st.integers(1, width)) + 1, count)
    drawn = random.integers(0, 2**64, count, dtype=np.uint64) >> (64 - np.minimum(lengths, 63)).astype(np.uint64)
    special = random.choice(np.array([0, 14, 15, 16, 254, 255, 269, 270, 271, 2**64 - 1], np.uint64), count)
    return np.where(random.random(count) < 0.2, special, drawn).astype(f"u{width}")


def test_images_of_floats_are_in_the_order_of_their_values():
    values = np.array([-np.inf, -2.0, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.0, np.inf], np.float32)
    image = reference.image(values.view(np.uint32), floating=True).view(np.int32)
    assert (np.diff(image) > 0).all()
    assert image[5] - image[4] == 1


def test_steps_worked_by_hand():
    before = np.array([0x0000, 0x8000, 0x3F80, 0x3F80], np.uint16)  # 0.0, -0.0, 1.0, 1.0 in bfloat16
    after = np.array([0x8000, 0x0000, 0x3F81, 0x3F7E], np.uint16)
    assert reference.steps_between(before, after, floating=True).tolist() == [1, 2, 2, 3]
    assert cpu.steps_between(before, after, floating=True).tolist() == [1, 2, 2, 3]
    assert cpu.steps_between(np.array([255], np.uint8), np.array([1], np.uint8), floating=False).tolist() == [4]


@given(sides())
def test_steps_are_the_reference_and_lead_both_ways(sides: tuple[np.ndarray, np.ndarray, bool]):
    before, after, floating = sides
    codes = cpu.steps_between(before, after, floating=floating)
    expected = reference.steps_between(before, after, floating=floating)
    assert codes.dtype == expected.dtype
    assert np.array_equal(codes, expected)
    assert np.array_equal(codes != 0, before != after)
    for form in (cpu, reference):
        walked = before.copy()
        form.step_(walked, codes, floating=floating)
        assert np.array_equal(walked, after)
        form.step_(walked, codes, floating=floating, backward=True)
        assert np.array_equal(walked, before)
        at = np.flatnonzero(codes).astype(np.uint32)
        form.step_at_(walked, at, codes[at], floating=floating)
        assert np.array_equal(walked, after)
        form.step_at_(walked, at, codes[at], floating=floating, backward=True)
        assert np.array_equal(walked, before)


@given(numbers(), numbers(), st.booleans(), st.booleans())
def test_any_steps_from_any_bits_are_the_reference(
    start: np.ndarray, codes: np.ndarray, floating: bool, backward: bool
):
    size = min(start.size, codes.size)
    bits, codes = start[:size].astype(np.uint64).astype(codes.dtype), codes[:size]
    expected = bits.copy()
    reference.step_(expected, codes, floating=floating, backward=backward)
    cpu.step_(bits, codes, floating=floating, backward=backward)
    assert np.array_equal(bits, expected)


def test_positions_outside_are_refused_before_anything_is_written():
    held = np.zeros(3, np.uint16)
    for form in (cpu, reference):
        with pytest.raises(IndexError):
            form.step_at_(held, np.array([0, 3], np.uint32), np.array([2, 2], np.uint16), floating=True)
    with pytest.raises(IndexError):
        cpu.step_(held, np.zeros(4, np.uint16), floating=True)
    assert not held.any()


@given(st.integers(0, 5000), st.floats(0, 1), seeds)
def test_gaps_are_the_reference_and_give_the_positions_back(coordinates: int, share: float, seed: int):
    positions = np.flatnonzero(np.random.default_rng(seed).random(coordinates) < share).astype(np.uint32)
    gaps = gaps_between(positions)
    assert np.array_equal(gaps, reference.gaps_between(positions))
    for form in (cpu, reference):
        assert np.array_equal(form.positions_of(gaps, coordinates), positions)
        if positions.size:
            assert form.positions_of(gaps, int(positions[-1])) is None


@given(st.integers(0, 5000), st.floats(0, 1), widths, seeds)
def test_codes_are_spread_to_their_places_and_none_outside(count: int, share: float, width: int, seed: int):
    random = np.random.default_rng(seed)
    at = np.flatnonzero(random.random(count) < share).astype(np.uint32)
    codes = random.integers(1, 2 ** (8 * width), at.size, dtype=f"u{width}")
    assert np.array_equal(cpu.spread(codes, at, count), reference.spread(codes, at, count))
    for form in (cpu, reference):
        if at.size:
            with pytest.raises(IndexError):
                form.spread(codes, at, int(at[-1]))


def test_gaps_that_reach_far_outside_are_refused():
    gaps = np.full(3, 2**32 - 1, np.uint32)
    assert places_of(gaps, 2**22) is None
    assert reference.positions_of(gaps, 2**22) is None


@given(numbers(), codings, st.integers(0, 3), st.integers(0, 3))
def test_packing_is_the_reference_and_comes_back(numbers: np.ndarray, coding: Coding, before: int, behind: int):
    streams = cpu.pack(numbers, coding)
    expected = reference.pack(numbers, coding)
    assert [stream.tolist() for stream in streams] == [stream.tolist() for stream in expected]
    parts = [np.full(before, 7, np.uint8), *streams, np.full(behind, 7, np.uint8)]
    payload = np.concatenate(parts)
    for form in (cpu, reference):
        found, end = form.unpack(payload, before, numbers.size, coding, numbers.dtype)
        assert found.dtype == numbers.dtype
        assert np.array_equal(found, numbers)
        assert end == payload.size - behind


@given(st.binary(max_size=60), st.integers(0, 40), codings, widths)
def test_any_payload_is_read_as_the_reference_reads_it_or_refused(data: bytes, count: int, coding: Coding, width: int):
    payload = np.frombuffer(data, np.uint8)
    found = cpu.unpack(payload, 0, count, coding, f"u{width}")
    expected = reference.unpack(payload, 0, count, coding, f"u{width}")
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert np.array_equal(found[0], expected[0])
        assert found[1] == expected[1]


@given(numbers())
def test_the_coding_that_is_chosen_is_sound(numbers: np.ndarray):
    coding = choose(numbers)
    assert coding.sound
    streams = pack(numbers, coding)
    payload = np.concatenate(streams) if streams else np.zeros(0, np.uint8)
    found, _ = cpu.unpack(payload, 0, numbers.size, coding, numbers.dtype)
    assert np.array_equal(found, numbers)


def test_small_steps_go_by_nibbles_and_random_bits_apart():
    random = np.random.default_rng(0)
    small = random.geometric(0.4, 10_000).astype(np.uint16) - np.uint16(1)
    assert choose(small).mode == NIBBLES
    wide = random.integers(0, 2**20, 10_000).astype(np.uint32)
    assert choose(wide).shift >= 12
    even = (random.integers(0, 256, 10_000) << 16).astype(np.uint32)
    assert choose(even) == Coding(PLANES, 0)
