"""Bits, hashing, rounding, threads and dispatch: each form against plain integers or torch."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common import cpu_math, gpu_math, threads
from rlforget_kernels.common.bits import as_bits, bits_dtype, write_back, zero_extend
from rlforget_kernels.common.dispatch import backend
from rlforget_kernels.common.hashing import mix64, mix64_int, random_words, shift_right, signed
from rlforget_kernels.common.launch import launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT, round_float32
from tests.kernels.strategies import laid_out, random_tensor, same_bits, seeds, tensors

words = st.integers(0, 2**64 - 1)
formats = pytest.mark.parametrize("dtype", FLOAT_FORMAT, ids=str)
NARROW = [dtype for dtype in FLOAT_FORMAT if dtype.itemsize < 4]


def interesting_floats() -> Tensor:
    """Uniform bits, ordinary magnitudes, every narrow value and midpoint with its neighbours."""
    uniform = random_tensor(torch.float32, (20_000,), 0)
    random = torch.Generator().manual_seed(1)
    scales = torch.exp(6 * torch.randn(20_000, generator=random))
    parts = [uniform, torch.randn(20_000, generator=random) * scales]
    for dtype in NARROW:
        codes = torch.arange(-(2 ** (8 * dtype.itemsize - 1)), 2 ** (8 * dtype.itemsize - 1)).to(bits_dtype(dtype))
        values = codes.view(dtype).float()
        values = values[values.isfinite()].sort().values
        middle = (values[1:].double() + values[:-1].double()).div(2).float()
        for bits in (values, middle):
            parts += [
                bits,
                (bits.view(torch.int32) + 1).view(torch.float32),
                (bits.view(torch.int32) - 1).view(torch.float32),
            ]
    return torch.cat(parts)


@given(tensors())
def test_as_bits_and_write_back(tensor: Tensor):
    bits = as_bits(tensor)
    assert bits.stride() == (1,)
    changed = tensor.clone() if tensor.is_contiguous() else laid_out(tensor, "strided")
    flat = as_bits(changed)
    flat ^= 1
    write_back(changed, flat)
    assert torch.equal(as_bits(changed), bits ^ 1)


def test_zero_extend():
    assert zero_extend(torch.tensor([-1, 5], dtype=torch.int8)).tolist() == [255, 5]
    assert zero_extend(torch.tensor([-1], dtype=torch.int32)).tolist() == [2**32 - 1]


@given(words, st.integers(1, 63))
def test_shift_right_is_unsigned(word: int, count: int):
    assert shift_right(torch.tensor(signed(word)), count) == word >> count


@given(words)
def test_mix64_is_one_function_everywhere(word: int):
    expected = mix64_int(word)
    assert mix64(torch.tensor(signed(word))) == signed(expected)
    assert cpu_math.mix64(np.uint64(word)) == expected


def test_mix64_is_the_published_finaliser():
    """fmix64 of MurmurHash3, by its reference implementation."""
    assert mix64_int(0) == 0
    assert mix64_int(1) == 0xB456BCFC34C2CB2C


@given(seeds, st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 50))
def test_random_words_depend_on_the_coordinate_alone(seed: int, offset: int, first: int, second: int):
    whole = random_words(seed, offset, first + second)
    pieces = (random_words(seed, offset, first), random_words(seed, offset + first, second))
    assert torch.equal(torch.cat(pieces), whole)


@formats
def test_rounding_to_nearest_equals_torch(dtype: torch.dtype):
    values = interesting_floats()
    values = values[~values.isnan()]
    if dtype is torch.float8_e4m3fn:  # older torch writes NaN beyond the largest number
        values = values[values.abs() <= 448]
    assert torch.equal(round_float32(values, dtype), values.to(dtype).view(bits_dtype(dtype)))


@formats
def test_too_large_and_nan(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0])
    rounded = round_float32(values, dtype).view(dtype).float()
    top = largest if dtype is torch.float8_e4m3fn else float("inf")
    assert rounded[:2].tolist() == [top, -top]
    assert rounded[2].isnan()
    assert torch.equal(as_bits(rounded[3:]), as_bits(values[3:]))
    payloads = torch.tensor([0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert round_float32(payloads, dtype).tolist() == [FLOAT_FORMAT[dtype].nan] * 2


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_stochastic_rounding_goes_to_a_neighbour_with_the_right_chance(dtype: torch.dtype):
    value = torch.tensor(1.0) + torch.finfo(dtype).eps * 0.3
    noise = shift_right(random_words(0, 0, 100_000), 32)
    rounded = round_float32(value.expand(100_000), dtype, noise).view(dtype).float()
    assert set(rounded.tolist()) == {1.0, 1.0 + torch.finfo(dtype).eps}
    # Five standard errors.
    assert abs((rounded > 1).float().mean().item() - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5


@formats
def test_stochastic_rounding_keeps_what_is_representable(dtype: torch.dtype):
    values = random_tensor(dtype, (5000,), 4).float()
    values = values[values.isfinite()]
    noise = torch.full((len(values),), 2**32 - 1)
    assert same_bits(round_float32(values, dtype, noise).view(dtype).float(), values)


@formats
def test_numba_rounds_and_widens_alike(dtype: torch.dtype):
    layout = tuple(FLOAT_FORMAT[dtype])
    values = interesting_floats()
    noise = shift_right(random_words(7, 0, len(values)), 32)
    nearest, stochastic = (np.empty(len(values), np.uint32) for _ in range(2))
    round_all(values.numpy(), noise.numpy().view(np.uint64), layout, nearest, stochastic)
    assert torch.equal(codes(nearest, dtype), round_float32(values, dtype))
    if dtype is not torch.float32:
        assert torch.equal(codes(stochastic, dtype), round_float32(values, dtype, noise))
    stored = random_tensor(dtype, (5000,), 5)
    widened = np.empty(5000, np.float32)
    widen_all(zero_extend(as_bits(stored)).numpy().astype(np.uint32), layout, widened)
    check_widened(torch.from_numpy(widened), stored)


@formats
def test_triton_rounds_and_widens_alike(dtype: torch.dtype):
    layout = dict(zip(("EXPONENT", "MANTISSA", "OVERFLOW", "NAN_CODE"), FLOAT_FORMAT[dtype], strict=True))
    values = interesting_floats()
    count = len(values)
    noise = shift_right(random_words(7, 0, count), 32)
    nearest, stochastic = (torch.empty(count, dtype=torch.int32) for _ in range(2))
    block = 1 << 17
    launch(round_kernel, triton.cdiv(count, block), values, noise, nearest, stochastic, count, **layout, BLOCK=block)
    assert torch.equal(codes(nearest.numpy(), dtype), round_float32(values, dtype))
    assert torch.equal(codes(stochastic.numpy(), dtype), round_float32(values, dtype, noise))
    stored = random_tensor(dtype, (4096,), 5)
    widened = torch.empty(4096)
    code = zero_extend(as_bits(stored)).to(torch.int32)
    launch(widen_kernel, 1, code, widened, EXPONENT=layout["EXPONENT"], MANTISSA=layout["MANTISSA"], BLOCK=4096)
    check_widened(widened, stored)


def codes(words: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The low bits of 32-bit words as the bits of `dtype`."""
    return torch.from_numpy(words.view(np.int32).copy()).to(bits_dtype(dtype))


def check_widened(widened: Tensor, stored: Tensor) -> None:
    expected = as_bits(stored).view(stored.dtype).float()
    assert torch.equal(widened.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(as_bits(widened)[number], as_bits(expected)[number])


@cpu_math.jit
def round_all(values, noise, layout, nearest, stochastic):
    for i in range(values.size):
        nearest[i] = cpu_math.round_nearest(values[i], layout)
        if layout[1] < 23:
            stochastic[i] = cpu_math.round_stochastic(values[i], layout, np.uint32(noise[i]))


@cpu_math.jit
def widen_all(codes, layout, widened):
    for i in range(codes.size):
        widened[i] = cpu_math.widen(codes[i], layout[0], layout[1])


@triton.jit
def round_kernel(
    values_ptr,
    noise_ptr,
    nearest_ptr,
    stochastic_ptr,
    count,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < count
    values = tl.load(values_ptr + offset, mask=inside)
    noise = tl.load(noise_ptr + offset, mask=inside).to(tl.uint64, bitcast=True)
    nearest = gpu_math.round_nearest(values, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
    stochastic = gpu_math.round_stochastic(values, noise, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
    tl.store(nearest_ptr + offset, nearest.to(tl.int32, bitcast=True), mask=inside)
    tl.store(stochastic_ptr + offset, stochastic.to(tl.int32, bitcast=True), mask=inside)


@triton.jit
def widen_kernel(codes_ptr, widened_ptr, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    code = tl.load(codes_ptr + offset).to(tl.uint32, bitcast=True)
    tl.store(widened_ptr + offset, gpu_math.widen(code, EXPONENT, MANTISSA))


@given(st.integers(0, 10_000), st.integers(1, 70), st.integers(1, 5))
def test_slices_cover_the_range_once(count: int, multiple: int, workers: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "GRAIN", 100)
        patch.setattr(torch, "get_num_threads", lambda: workers)
        slices = threads.map_slices(lambda start, stop: (start, stop), count, multiple)
    assert [start for start, _ in slices] == [start for _, (start, _) in slices]
    assert [i for _, (start, stop) in slices for i in range(start, stop)] == list(range(count))
    assert all(start % multiple == 0 for start, _ in slices)
    assert len(slices) <= workers


@given(
    st.lists(st.sampled_from([0, 1, 5, 64, 999, 5000]), max_size=6),
    st.sampled_from([1, 7, 64]),
    st.integers(1, 5),
)
def test_pieces_cover_every_range_once(sizes: list[int], multiple: int, workers: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "GRAIN", 100)
        patch.setattr(torch, "get_num_threads", lambda: workers)
        found = threads.map_pieces(lambda *piece: piece, sizes, multiple)
        assert len(threads.runs(sizes, multiple)) <= workers
    assert all(piece == result for piece, result in found)
    assert all(start % multiple == 0 for (_, start, _), _ in found)
    covered = [(position, i) for (position, start, stop), _ in found for i in range(start, stop)]
    assert covered == [(position, i) for position, size in enumerate(sizes) for i in range(size)]


def test_many_short_loops_are_one_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert len(threads.runs([100] * 1000, 1)) == 1
    assert [len(run) for run in threads.runs([threads.GRAIN] * 8, 1)] == [2] * 4


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        threads.map_slices(lambda start, stop: 1 // start, 10)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_items(monkeypatch: pytest.MonkeyPatch, workers: int):
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    assert list(threads.in_order(work, range(20))) == [item * item for item in range(20)]


def test_an_error_ends_the_rest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    running = []

    def work(item: int) -> int:
        running.append(item)
        time.sleep(0.005)
        running.remove(item)
        return 1 // (item - 4)

    with pytest.raises(ZeroDivisionError):
        list(threads.in_order(work, range(100)))
    assert not running


def test_loops_inside_loops_and_callers_beside_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def inner(item: int) -> int:
        time.sleep(0.001)
        return item

    def outer(item: int) -> int:
        return sum(threads.in_order(inner, range(item)))

    expected = [item * (item - 1) // 2 for item in range(8)]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: list(threads.in_order(outer, range(8))), range(8)))
    assert found == [expected] * 8


def test_threads_hold_nothing_of_a_caller_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for _ in range(200):
        memory = mmap.mmap(-1, 4096)
        array = np.frombuffer(memory, np.uint8)

        def work(item: int, array: npt.NDArray[np.uint8] = array) -> int:
            return int(array[item])

        assert list(threads.in_order(work, range(8))) == [0] * 8
        del work, array
        memory.close()  # raises where anyone still looks at it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_has_threads_of_its_own():
    script = """
import os, torch
from rlforget_kernels.common import threads
torch.get_num_threads = lambda: 2
def squares():
    return list(threads.in_order(lambda item: item * item, range(50)))
expected = squares()
child = os.fork()
if child == 0:
    os._exit(0 if squares() == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert squares() == expected
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_dispatch_names_the_fault():
    package = "rlforget_kernels.sparse_delta"
    assert backend(package, torch.zeros(1), None).__name__ == f"{package}.cpu"
    with pytest.raises(ValueError, match=r"found cpu, meta\. Move"):
        backend(package, torch.zeros(1), torch.zeros(1, device="meta"))
    with pytest.raises(NotImplementedError, match="found meta"):
        backend(package, torch.zeros(1, device="meta"))
