"""Silence for what transformers, TRL and datasets say on their own account; errors stay loud."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_MODULES = ("transformers", "trl", "accelerate", "datasets", "peft", r"torch\.optim")


@contextmanager
def quiet() -> Iterator[None]:
    """Drop their progress bars, log lines below ERROR, warnings and telemetry; put all back afterwards.

    Warnings from elsewhere, e.g. from a user's reward function, still show.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    telemetry_off = constants.HF_HUB_DISABLE_TELEMETRY
    with warnings.catch_warnings():
        for module in _MODULES:
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        # TRL reports every start of a trainer to a server, unless told not to.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
            constants.HF_HUB_DISABLE_TELEMETRY = telemetry_off
