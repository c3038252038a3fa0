"""Launch settings: what the table gives, and how the tuner fills it."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels import tune
from rlforget_kernels.common import score_bits_gpu, settings
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.settings import Setting, Settings
from rlforget_kernels.common.tunable import Tunable
from rlforget_kernels.conflict_score import gpu as conflict_score
from rlforget_kernels.delta_stats import gpu as delta_stats
from rlforget_kernels.fisher_accumulate import gpu as fisher_accumulate
from rlforget_kernels.patch import gpu as patch
from rlforget_kernels.rollback import gpu as rollback
from rlforget_kernels.select_top import gpu as select_top
from rlforget_kernels.subtract import gpu as subtract
from tests.kernels.strategies import FLOATS, changed_copy, generator, random_tensor, same_bits

CPU = torch.device("cpu")
ROWS = {
    "patch": {
        "0": {"1": {"block": 128, "warps": 1, "stages": 1}},
        "80": {"2": {"block": 512, "warps": 2, "stages": 1}},
        "100": {"4": {"block": 256, "warps": 2, "stages": 1}},
    }
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(settings, "table", lambda: ROWS)
    return Settings("patch")


@pytest.mark.parametrize(
    ("size", "architecture", "block"),
    [
        (2, 80, 512),
        (2, 86, 512),
        (2, 100, 512),
        (4, 100, 256),
        (4, 120, 256),
        (1, 90, 128),
        (1, 75, 128),
        (1, None, 128),
    ],
)
def test_the_nearest_older_architecture_serves(known: Settings, size: int, architecture: int | None, block: int):
    assert known.at(size, architecture).block == block


@pytest.mark.parametrize(("size", "architecture"), [(2, 75), (2, None), (4, 90), (8, 100)])
def test_what_the_table_does_not_know_has_a_default(known: Settings, size: int, architecture: int | None):
    assert known.at(size, architecture) == settings.untuned(size)


def test_a_tensor_tells_its_size_and_device(known: Settings):
    assert known.on(torch.zeros(1, dtype=torch.int16)) == settings.untuned(2)
    assert known.blocks(CPU) == {1: 128} | {size: settings.untuned(size).block for size in (2, 4, 8)}


def test_by_default_a_thread_starts_four_wide_loads():
    for size in (1, 2, 4, 8):
        setting = settings.untuned(size)
        assert setting.block * size == 4 * 16 * 32 * setting.warps


def test_a_forced_setting_ends(known: Settings):
    with known.forced(2, Setting(64)):
        assert known.at(2, 80) == Setting(64)
        assert known.at(4, 80) == settings.untuned(4)
    assert known.at(2, 80) == Setting(512, 2, 1)


def test_a_compilation_takes_the_setting_of_its_architecture(known: Settings):
    spec = KernelSpec(None, "16 bit", {}, {"BLOCK": 1, "TYPE": "x"}, settings=known, size=2)
    on = spec.on(90)
    assert (on.constexprs, on.warps, on.stages) == ({"BLOCK": 512, "TYPE": "x"}, 2, 1)
    fixed = KernelSpec(None, "16 bit", {}, {"BLOCK": 1})
    assert fixed.on(90) is fixed


def test_the_committed_table_is_what_the_tuner_would_write():
    text = settings.TABLE.read_text(encoding="utf-8")
    assert tune.text_of(json.loads(text)) == text


def test_the_committed_table_has_what_can_be_tuned():
    tunables = {tunable.settings.operator: tunable for tunable in tune.tunables()}
    assert set(settings.table()) == set(tunables)
    for operator, tunable in tunables.items():
        assert set(settings.table()[operator]["0"]) >= {str(size) for size in tunable.sizes}


def test_the_committed_blocks_are_powers_of_two():
    rows = [row for by in settings.table().values() for sizes in by.values() for row in sizes.values()]
    assert all(Setting(**row).block.bit_count() == 1 for row in rows)


@triton.jit
def double_kernel(values_ptr, numel, BLOCK: tl.constexpr):
    """Double in place."""
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < numel
    tl.store(values_ptr + offset, 2 * tl.load(values_ptr + offset, mask=inside), mask=inside)


class Doubling:
    """A tunable that counts the programs of each trial, in place of time."""

    def __init__(self) -> None:
        self.settings = Settings("double")
        self.programs = 0
        self.values = torch.empty(0)
        self.tunable = Tunable(self.settings, self.trial, sizes=(4,), loads=(1, 2), warps=(1, 2))

    def trial(self, size: int, elements: int, device: torch.device) -> object:
        self.values = torch.ones(elements, dtype=torch.int32, device=device)

        def call() -> None:
            setting = self.settings.on(self.values)
            self.programs = triton.cdiv(elements, setting.block)
            launch(double_kernel, self.programs, self.values, elements, BLOCK=setting.block, warps=setting.warps)

        return call

    def time(self, call: object) -> float:
        call()  # type: ignore[operator]
        return float(self.programs)


def test_the_fastest_setting_is_chosen():
    doubling = Doubling()
    chosen, seconds = tune.tune(doubling.tunable, 4, CPU, doubling.time, elements=1000, rounds=3)
    assert set(seconds) == {settings.untuned(4), *doubling.tunable.candidates(4)}
    assert chosen == settings.untuned(4) == min(seconds, key=lambda setting: seconds[setting])
    # The kernel ran: once to warm up and three times, for each setting.
    assert (doubling.values == 2 ** (4 * len(seconds))).all()


def test_noise_replaces_nothing_and_a_gain_does():
    doubling, present = Doubling(), settings.untuned(4)
    other = doubling.tunable.candidates(4)[0]
    for share, expected in ((0.99, present), (0.9, other)):

        def timer(call: object, share: float = share) -> float:
            return share if doubling.settings.at(4, None) == other else 1.0

        assert tune.tune(doubling.tunable, 4, CPU, timer, elements=8)[0] == expected


def test_what_the_device_cannot_run_is_left_out():
    from triton.runtime.errors import OutOfResources

    doubling = Doubling()

    def timer(call: object) -> float:
        if doubling.settings.at(4, None).warps != 2:
            raise OutOfResources(1, 0, "shared memory")
        return 1.0

    chosen, seconds = tune.tune(doubling.tunable, 4, CPU, timer, elements=8)
    assert chosen in seconds
    assert {setting.warps for setting in seconds} == {2}


def test_a_new_setting_changes_its_own_row_alone():
    changed = tune.with_setting(ROWS, "patch", 90, 2, Setting(256, 4, 3))
    assert changed["patch"]["80"] == ROWS["patch"]["80"]
    assert changed["patch"]["90"] == {"2": {"block": 256, "warps": 4, "stages": 3}}
    assert "90" not in ROWS["patch"]
    assert json.loads(tune.text_of(changed)) == changed
    assert '      "2": {"block": 256, "stages": 3, "warps": 4}\n' in tune.text_of(changed)


def test_without_a_device_the_command_says_so(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert tune.main([]) == 1
    assert "expected a CUDA device; torch finds none" in capsys.readouterr().err


def test_the_command_writes_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    doubling = Doubling()
    monkeypatch.setattr(tune, "_device", lambda: (CPU, 90))
    monkeypatch.setattr(tune, "tunables", lambda operators: iter([doubling.tunable]))
    out = tmp_path / "table.json"
    assert tune.main(["--elements", "64", "--out", str(out)], timer=doubling.time) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert Setting(**written["double"]["90"]["4"]) == settings.untuned(4)
    assert written.items() >= settings.table().items()


TUNABLES = [pytest.param(tunable, id=tunable.settings.operator) for tunable in tune.tunables()]


@pytest.mark.parametrize("tunable", TUNABLES)
def test_no_setting_changes_a_result(tunable: Tunable):
    """Every tunable runs on scratch tensors, to the end, under the interpreter, and makes the same in any setting."""
    for size in tunable.sizes:
        candidates = tunable.candidates(size)
        found = []
        for setting in (tunable.settings.at(size, None), candidates[0], candidates[-1]):
            torch.manual_seed(0)
            call = tunable.trial(size, 5000, CPU)  # each on tensors of its own: some write to them
            with tunable.settings.forced(size, setting):
                found.append(flat(call()))
        assert sum(tensor.numel() for tensor in found[0]) > 1
        for other in found[1:]:
            assert len(found[0]) == len(other)
            assert all(map(same_bits, found[0], other))


def flat(result: object) -> list[Tensor]:
    """The tensors in what an operator returned."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)] if isinstance(result, list | tuple) else []


# What writes in place: its settings, and a call on a weight, other bits for it, float32 values and some of its indices.
Write = Callable[[Tensor, Tensor, Tensor, Tensor], object]
WRITES: dict[str, tuple[Settings, Write]] = {
    "fisher": (
        fisher_accumulate._SETTINGS,
        lambda weight, _, values, where: fisher_accumulate.foreach_fisher_accumulate_(
            [weight, weight[: len(where)]], [values, values], [None, where]
        ),
    ),
    "patch": (
        patch._SETTINGS,
        lambda weight, other, _, where: patch.foreach_patch_(
            [weight], [where], [as_bits(weight)[where]], [as_bits(other)[where]]
        ),
    ),
    "rollback": (
        rollback._SETTINGS,
        lambda weight, other, values, _: rollback.foreach_rollback_(
            [weight], [other], [None], [values], 0.5, 0.3, 3, [7], False
        ),
    ),
    "rollback by share": (
        rollback._SETTINGS,
        lambda weight, other, values, where: rollback.foreach_rollback_(
            [weight], [other[where]], [where], [values[where]], 0.0, 0.3, 3, [7], True
        ),
    ),
    "subtract": (
        subtract._SETTINGS,
        lambda weight, _, values, __: subtract.foreach_subtract_([weight], [values], 3, [7]),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fisher", torch.float32),
        ("patch", torch.bfloat16),
        *((name, dtype) for name in ("rollback", "rollback by share") for dtype in FLOATS),
        *(("subtract", dtype) for dtype in FLOATS),
    ],
    ids=str,
)
def test_no_setting_changes_what_is_written(name: str, dtype: torch.dtype):
    """Into values of all kinds, with random bits for those that draw them."""
    operator, write = WRITES[name]
    weight, other = (random_tensor(dtype, (3000,), seed) for seed in range(2))
    values, where = torch.rand(3000, generator=generator(2)), torch.arange(1, 3000, 2)
    found = []
    for setting in (Setting(256, 1), Setting(2048, 8, 1)):
        found.append(weight.clone())
        with contextlib.ExitStack() as forced:
            for size in (1, 2, 4, 8):
                forced.enter_context(operator.forced(size, setting))
            write(found[-1], other, values, where)
    assert same_bits(*found)
    assert not same_bits(found[0], weight)


def test_what_is_written_follows_the_random_bits():
    """So that the test before this one would see others."""
    weight, values = torch.ones(3000, dtype=torch.bfloat16), torch.full((3000,), 1e-3)
    found = [weight.clone(), weight.clone()]
    for seed, one in enumerate(found):
        subtract.foreach_subtract_([one], [values], seed, [0])
    assert not same_bits(*found)


@pytest.mark.parametrize("tunable", TUNABLES)
def test_kernels_are_launched_in_their_setting(tunable: Tunable, monkeypatch: pytest.MonkeyPatch):
    backend = importlib.import_module(f"rlforget_kernels.{tunable.settings.operator.split('.')[0]}.gpu")
    launched = []

    def noted(kernel: object, *args: object, **constants: Any) -> None:
        launched.append({name: constants.get(name) for name in ("BLOCK", "warps", "stages")})
        launch(kernel, *args, **constants)

    monkeypatch.setattr(backend, "launch", noted)
    size = tunable.sizes[0]
    setting = Setting(tunable.candidates(size)[0].block, 1, 7)
    with tunable.settings.forced(size, setting):
        tunable.trial(size, 100, CPU)()
    assert launched
    assert all(one == setting.launched for one in launched)


@pytest.mark.parametrize(("module", "name"), [(score_bits_gpu, "_INTERPRETED"), (delta_stats, "_SLOTS")])
def test_no_number_of_programs_changes_a_result(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch):
    scores = [torch.rand(size, generator=generator(size)) for size in (9000, 40, 20_000)]
    after = [changed_copy(score, 0.1, 0) for score in scores]
    found = []
    for programs in (1, 2, 7):
        monkeypatch.setattr(module, name, programs)
        counts = conflict_score.foreach_conflict_score(scores, "magnitude", *[[None] * 3] * 3, 0.0, 0, [0] * 3)
        found.append(
            flat([select_top.leading_histogram(scores), counts, delta_stats.foreach_delta_stats(scores, after)])
        )
    assert all(all(map(same_bits, found[0], other)) for other in found[1:])
