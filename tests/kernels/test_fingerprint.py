from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.hashing import GOLDEN, mix64_int
from rlforget_kernels.fingerprint import (
    cpu,
    fingerprint,
    fingerprint_after_patch,
    foreach_fingerprint,
    gpu,
    reference,
)
from rlforget_kernels.sparse_delta import reference as sparse_delta
from tests.kernels.strategies import DTYPES, OPCHECK_DTYPES, generator, pairs, random_tensor, seeds, tensors

KNOWN = [-4971745476255935064, 6363636222033055943]
"""The fingerprint of arange(3000) in int32."""

offsets = st.one_of(st.just(0), st.integers(0, 5000), st.just(2**33 + 17))


def of_one(backend: ModuleType, weight: Tensor, offset: int = 0) -> Tensor:
    return backend.foreach_fingerprint([weight], [offset])[0]


def by_hand(words: list[int], offset: int = 0) -> list[int]:
    """The formula on unsigned words of 32 bits in Python's own integers."""
    lanes = []
    for place_seed, tile_seed in ((1, 3), (2, 4)):
        total = 0
        for i, word in enumerate(words, start=offset):
            tile, place = divmod(i, 1024)
            tile_factor = mix64_int((tile * GOLDEN + mix64_int(tile_seed)) % 2**64) | 1
            place_factor = mix64_int((place * GOLDEN + mix64_int(place_seed)) % 2**64) >> 32
            total += tile_factor * place_factor * word
        lanes.append(total % 2**64)
    return lanes


@given(st.sampled_from(DTYPES), seeds, st.integers(0, 4200), offsets)
@settings(max_examples=40)
def test_reference_is_the_formula_on_the_bytes(dtype: torch.dtype, seed: int, length: int, offset: int):
    weight = random_tensor(dtype, (length,), seed)
    skipped = offset * weight.element_size()
    stored = bytes(skipped % 4) + as_bits(weight).numpy().tobytes()
    stored += bytes(-len(stored) % 4)
    words = [int.from_bytes(stored[k : k + 4], "little") for k in range(0, len(stored), 4)]
    assert [lane % 2**64 for lane in of_one(reference, weight, offset).tolist()] == by_hand(words, skipped // 4)


@pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
@given(weight=tensors(), offset=offsets)
@settings(max_examples=60)
def test_backend_equals_reference(backend: ModuleType, weight: Tensor, offset: int):
    assert torch.equal(of_one(backend, weight, offset), of_one(reference, weight, offset))


@pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
@given(weights=st.lists(tensors(), max_size=6), offset=offsets)
@settings(max_examples=25)
def test_list_equals_one_by_one(backend: ModuleType, weights: list[Tensor], offset: int):
    offsets = [offset + position for position in range(len(weights))]
    found = backend.foreach_fingerprint(weights, offsets)
    assert found.shape == (len(weights), 2)
    for lanes, weight, place in zip(found, weights, offsets, strict=True):
        assert torch.equal(lanes, of_one(reference, weight, place))


def test_programs_and_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    weight = random_tensor(torch.float32, (40_001,), 3)
    expected = of_one(reference, weight)
    assert torch.equal(of_one(cpu, weight), expected)
    assert torch.equal(of_one(gpu, weight), expected)


@given(tensors(), st.data())
def test_pieces_add_up(weight: Tensor, data: st.DataObject):
    flat = weight.reshape(-1)
    cut = data.draw(st.integers(0, flat.numel()))
    pieces = fingerprint(flat[:cut]) + fingerprint(flat[cut:], cut)
    assert torch.equal(pieces, fingerprint(weight))


@given(pairs())
def test_update_after_a_patch_equals_a_fresh_fingerprint(pair: tuple[Tensor, Tensor]):
    before, after = pair
    indices, old, new = sparse_delta.sparse_delta(before, after)
    assert torch.equal(fingerprint_after_patch(fingerprint(before), indices, old, new), fingerprint(after))
    assert torch.equal(fingerprint_after_patch(fingerprint(after), indices, new, old), fingerprint(before))


@pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
@given(pair=pairs(), offset=st.sampled_from([0, 2**31, 2**62, -5000]), order=seeds)
def test_update_of_a_backend_equals_reference(
    backend: ModuleType, pair: tuple[Tensor, Tensor], offset: int, order: int
):
    """In any order of the indices, and for such as no tensor has: a file may be forged."""
    indices, old, new = sparse_delta.sparse_delta(*pair)
    shuffled = torch.randperm(indices.numel(), generator=generator(order)) if order % 2 else slice(None)
    patch = ((indices.long() + offset)[shuffled], old[shuffled], new[shuffled])
    lanes = torch.tensor(KNOWN)
    assert torch.equal(backend.fingerprint_after_patch(lanes, *patch), reference.fingerprint_after_patch(lanes, *patch))
    assert lanes.tolist() == KNOWN


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_threads_do_not_change_an_update(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    old, new = (random_tensor(dtype, (40_001,), seed) for seed in (1, 2))
    update = (torch.tensor(KNOWN), torch.arange(0, 120_003, 3), old, new)
    assert torch.equal(fingerprint_after_patch(*update), reference.fingerprint_after_patch(*update))


@given(pairs())
def test_either_lane_tells_different_bits_apart(pair: tuple[Tensor, Tensor]):
    before, after = pair
    same = torch.equal(as_bits(before), as_bits(after))
    assert (fingerprint(before) == fingerprint(after)).tolist() == [same, same]


@given(seeds, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn]))
@settings(max_examples=20)
def test_flipped_signs_and_swapped_elements_are_seen(seed: int, dtype: torch.dtype):
    weight = random_tensor(dtype, (3000,), seed)
    bits = as_bits(weight)
    flipped = bits.clone()
    flipped[[5, 1700]] ^= torch.iinfo(bits.dtype).min
    swapped = bits.clone()
    swapped[[5, 6, 1030]] = bits[[6, 1030, 5]]
    seen = {tuple(fingerprint(version).tolist()) for version in (bits, flipped, swapped)}
    assert len(seen) == len({tuple(version.tolist()) for version in (bits, flipped, swapped)})


def test_thousand_single_changes_give_a_thousand_fingerprints():
    weight = torch.zeros(1000, dtype=torch.int16)
    seen = {tuple(fingerprint(weight.clone().index_fill_(0, torch.tensor(i), 1)).tolist()) for i in range(1000)}
    assert len(seen) == 1000


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    weight = random_tensor(dtype, (40, 5), 1)
    torch.library.opcheck(torch.ops.rlforget.fingerprint.default, (weight,))
    torch.library.opcheck(torch.ops.rlforget.foreach_fingerprint.default, ([weight, weight[:3]], [0, 7]))


def test_known_values():
    """Files hold fingerprints, so they must never change."""
    assert fingerprint(torch.arange(3000, dtype=torch.int32)).tolist() == KNOWN
    assert by_hand(list(range(3000))) == [lane % 2**64 for lane in KNOWN]


def test_bad_input():
    with pytest.raises(ValueError, match="offset"):
        fingerprint(torch.zeros(3), -1)
    with pytest.raises(TypeError, match="complex64"):
        fingerprint(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"one offset a tensor, 2; found 1"):
        foreach_fingerprint([torch.zeros(3), torch.zeros(3)], [0])


@pytest.mark.parametrize(
    ("indices", "before", "after", "error", "message"),
    [
        (torch.arange(3.0), torch.arange(3), torch.arange(3), TypeError, "float32"),
        (torch.arange(3), torch.arange(3), torch.arange(3).short(), TypeError, "int64 and torch.int16"),
        (torch.arange(3), torch.arange(4), torch.arange(4), ValueError, "before_bits of equal length"),
        (torch.arange(3), torch.arange(3), torch.arange(4), ValueError, "after_bits of equal length"),
        (torch.ones(1, 1).long(), torch.ones(1, 1).long(), torch.ones(1, 1).long(), ValueError, "1-D"),
    ],
)
def test_bad_update(indices: Tensor, before: Tensor, after: Tensor, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        fingerprint_after_patch(torch.tensor(KNOWN), indices, before, after)
