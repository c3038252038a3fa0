"""The threads that kernels run on."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from rlforget_kernels.common.threads import in_order


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say where threads run")
def test_helpers_keep_off_the_callers_core(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("there is one core")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    both = threading.Barrier(2, timeout=60)

    def where(_: int) -> tuple[int, set[int]]:
        both.wait()  # neither thread does the other's item
        return threading.get_native_id(), os.sched_getaffinity(0)

    list(in_order(where, range(2)))  # the helper starts
    found = dict(in_order(where, range(2)))
    assert found.pop(threading.get_native_id()) == allowed
    assert found
    assert all(cores < allowed and len(cores) == len(allowed) - 1 for cores in found.values())
