"""How a case is measured."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks import clock, compiled, environment, harness
from benchmarks.ceiling import float_speed, passes
from benchmarks.compiled import Compiled, torch_peers, torch_peers_of_each
from benchmarks.harness import Case, Machine, Measurement, Unavailable, discover
from benchmarks.inputs import lines_of
from benchmarks.memory import bytes_of, peak_extra, peak_of
from benchmarks.time_limit import time_limit
from rlforget_kernels import OPERATORS

CPU = torch.device("cpu")
MEBIBYTE = 1 << 20


def sleeping(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def measured(case: Case, budget: float = harness.BUDGET) -> Measurement:
    """After all its rounds."""
    measurement = Measurement(case, CPU, budget=budget)
    measurement.run()
    return measurement


def test_every_operator_has_cases():
    assert {operator for operator, _ in discover()} >= set(OPERATORS)


def test_rounds_are_taken_in_turns_until_the_budget_is_spent():
    peers = {"slow": sleeping(0.11), "quick": sleeping(0.001)}
    measurement = measured(Case(1 << 20, ours=sleeping(0.01), peers=peers, agree=lambda: True), 0.1)
    taken = {name: len(times) for name, times in measurement.seconds.items()}
    assert harness.ROUNDS.start <= measurement.rounds < 11
    assert taken == {
        "ours": measurement.rounds,
        "ceiling": measurement.rounds,
        "slow": 2,  # at least, though one is above its budget
        "quick": measurement.rounds,
    }
    record = measurement.record()
    assert record["seconds"]["ours"] == min(measurement.seconds["ours"]) >= 0.01
    assert record["seconds"]["slow"] >= 0.11


def test_an_error_is_recorded_where_a_case_has_one():
    case = Case(1 << 10, ours=lambda: None, peers={}, agree=lambda: True)
    assert Measurement(case, CPU).record()["error"] is None
    assert Measurement(dataclasses.replace(case, error=lambda: 1e-7), CPU).record()["error"] == 1e-7


def test_a_peer_of_seconds_runs_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "SLOW", 0.05)
    measurement = measured(Case(16, ours=sleeping(0), peers={"slow": sleeping(0.06)}, agree=lambda: True), 0.01)
    assert len(measurement.seconds["slow"]) == 1


def test_what_is_not_there_is_said():
    case = Case(16, ours=sleeping(0), peers={"other": Unavailable("pip install other")}, agree=lambda: True)
    record = measured(case).record()
    assert record["notes"] == {"other": "pip install other"}
    assert "other" not in record["seconds"]


def test_a_failure_to_compile_is_a_result():
    def fails() -> None:
        raise RuntimeError("no such kernel\nand more")

    record = measured(Case(16, ours=sleeping(0), peers={"torch.compile": Compiled(fails)}, agree=bool)).record()
    assert record["notes"] == {"torch.compile": "failed: RuntimeError: no such kernel"}
    assert set(record["seconds"]) == {"ours", "ceiling"}


def test_a_failure_of_any_other_peer_is_a_fault():
    def fails() -> None:
        raise RuntimeError("broken peer")

    with pytest.raises(RuntimeError, match="broken peer"):
        Measurement(Case(16, ours=sleeping(0), peers={"torch": fails}, agree=lambda: True), CPU)


def broken_in_two(values: torch.Tensor) -> torch.Tensor:
    doubled = 2 * values
    torch._dynamo.graph_break()
    return doubled + 1


def test_graph_breaks_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_compiled", lambda function, dynamic=None: torch.compile(function, backend="eager"))
    peers = torch_peers(broken_in_two, lambda: (torch.ones(3),))
    assert peers["torch"]().tolist() == peers["torch.compile"]().tolist() == [3, 3, 3]
    assert re.match(r"1 graph break \(.+\)$", peers["torch.compile"].note)


def test_each_tensor_is_a_call_of_each_function(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_compiled", lambda function, dynamic=None: function)
    for peer in torch_peers_of_each([abs, lambda n: n + 1], lambda: [(-1,), (2,)]).values():
        assert peer() == [1, 0, 2, 3]


def test_what_takes_seconds_runs_once_and_is_measured():
    runs: list[str] = []
    peers = {"torch": lambda: runs.append("torch")}
    case = Case(16, ours=lambda: runs.append("ours"), peers=peers, agree=bool, heavy=True, notes={"torch": "less"})
    record = measured(case).record()
    assert runs == ["ours", "torch"]
    assert set(record["seconds"]) == {"ours", "torch", "ceiling"}
    assert set(record["peak_bytes"]) == {"ours", "torch"}
    assert record["notes"] == {"torch": "less"}


def test_a_compilation_that_takes_too_long_is_given_up_once():
    def slow() -> None:
        started.append(1)
        try:
            time.sleep(60)
        except Exception:
            started.append(2)

    started: list[int] = []
    case = Case(16, ours=sleeping(0), peers={"torch.compile": Compiled(slow, "slow")}, agree=bool)
    for _ in range(2):
        measurement = Measurement(case, CPU, lambda: time_limit(0.05))
        assert measurement.notes == {"torch.compile": "failed: TimeoutError: not done in 0.05 s"}
    assert started == [1]


def test_the_clock_passes_while_something_timed_runs():
    start = clock.now()
    time.sleep(0.01)
    assert clock.now() == start
    taken = clock.timed(sleeping(0.01), CPU)
    assert clock.now() - start == pytest.approx(taken)
    assert 0.01 <= taken < 1


@pytest.mark.parametrize("kind", ["read", "read one", "copy"])
def test_a_ceiling_runs_at_any_size(kind: str):
    for moved in (0, 1, 16, 1 << 20):
        for run in passes(kind, moved, CPU):
            run()


def test_the_machine_multiplies_at_some_speed():
    assert max(float_speed() for _ in range(5)) > 1e8


def test_a_ceiling_may_move_other_bytes_than_the_task_does():
    case = Case(1 << 20, ours=lambda: None, peers={}, agree=lambda: True, ceiling="read", least=1 << 10, flops=8)
    record = measured(case, 0.01).record()
    assert (record["moved"], record["ceiling_moved"]) == (1 << 20, 1 << 10)
    assert record["float_speed"] > 1e8
    record = measured(dataclasses.replace(case, least=0, flops=0), 0.01).record()
    assert (record["ceiling_moved"], record["float_speed"]) == (1 << 20, 0)


def test_lines_of_memory_count_once():
    assert lines_of(torch.tensor([0, 1, 31, 32, 100]), 2) == 3 * 64
    assert lines_of(torch.tensor([], dtype=torch.int32), 2) == 0


def test_extra_memory_is_what_is_neither_there_before_nor_returned():
    kept = torch.zeros(16 * MEBIBYTE, dtype=torch.uint8)

    def call() -> list[torch.Tensor]:
        temporary = np.ones(48 * MEBIBYTE, np.uint8)
        return [kept[:1] + int(temporary[0]), torch.from_numpy(np.ones(32 * MEBIBYTE, np.uint8))]

    call()
    extra = peak_extra(call, CPU)
    if extra is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 46 * MEBIBYTE < extra < 52 * MEBIBYTE
    assert peak_extra(lambda: None, CPU) < MEBIBYTE
    found = peak_of(call, CPU)
    assert found is not None
    assert found.whole > found.extra + 32 * MEBIBYTE


def test_tensors_on_one_storage_count_once():
    tensor = torch.zeros(100)
    assert bytes_of((tensor, [tensor[:50]], torch.zeros(3, dtype=torch.int8), None, 5)) == 403


def test_environment():
    found = environment.describe(CPU)
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({"cpu": "Intel(R) Xeon(R) CPU @ 2.70GHz", "cores": 2}, "intel-xeon-cpu-2-70ghz-2-cores-2026-01-31"),
        ({"cpu": "x", "cores": 2, "gpu": "NVIDIA H200"}, "nvidia-h200-2026-01-31"),
    ],
)
def test_results_are_named_by_device_and_date(found: dict[str, object], name: str):
    assert environment.slug(found | {"date": "2026-01-31"}) == name


def test_a_machine_can_take_smaller_tensors_only():
    machine = Machine(CPU, 1000)
    assert (machine.smaller(10).elements, machine.smaller(10_000).elements) == (10, 1000)
