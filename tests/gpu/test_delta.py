"""Deltas of weights on a device are those of the same weights on the CPU."""

from __future__ import annotations

import pytest
import torch

from rlforget.delta import apply, diff, revert
from rlforget.errors import WrongBaseError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_deltas_cross_devices(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    old = {"matrix": (torch.randn(257, 129) > 0).to(dtype), "scalar": torch.ones(()).to(dtype)}
    new = {"matrix": (torch.randn(257, 129) > 0).to(dtype), "scalar": torch.zeros(()).to(dtype)}
    on_device = [{name: tensor.cuda() for name, tensor in side.items()} for side in (old, new)]
    delta = diff(old, new)
    assert diff(*on_device) == delta
    assert diff(old, on_device[1]) == diff(on_device[0], new) == delta
    assert all(part.indices.device.type == "cpu" for part in delta.values())
    prints = [
        [(part.fingerprint_before, part.fingerprint_after) for part in made.values()]
        for made in (delta, diff(*on_device))
    ]
    assert prints[0] == prints[1]

    live = {name: tensor.clone() for name, tensor in on_device[0].items()}
    apply(live, delta)
    assert diff(live, new).changed == 0
    with pytest.raises(WrongBaseError, match="is there already"):
        apply(live, delta)
    revert(live, delta)
    assert diff(live, old).changed == 0
