from __future__ import annotations

import pytest
import torch

from rlforget_kernels import tune
from rlforget_kernels.common.settings import architecture_of

pytestmark = pytest.mark.gpu


def test_tuning_measures_what_can_be_launched():
    tunable = next(iter(tune.tunables(["fisher_accumulate"])))
    size = tunable.sizes[0]
    device = torch.device("cuda")
    chosen, seconds = tune.tune(tunable, size, device, tune.time_on_device, elements=1 << 20, rounds=2)
    present = tunable.settings.at(size, architecture_of(device))
    assert {chosen, present} <= set(seconds) <= {present, *tunable.candidates(size)}
    assert all(0 < taken < 1 for taken in seconds.values())
