"""These tests compile Triton kernels and run them on a device. Run them with: pytest -m gpu"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The device, or a skip that says what is missing."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch finds none")
    import triton

    if triton.knobs.runtime.interpret:
        pytest.skip("Triton is interpreted in this process; run the device's tests alone: pytest -m gpu")
    return torch.device("cuda")
