"""A live model lent to a trainer: afterwards only its weights differ."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Put back, also on an exception, what trainers leave behind on a model.

    They patch its forward, edit its configuration and its generation configuration, switch it to training mode, turn
    activation checkpointing on, freeze weights under an adapter, and leave gradients.
    """
    forward = model.__dict__.get("forward")
    config, generation = copy.deepcopy(vars(model.config)), copy.deepcopy(model.generation_config)
    training = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    checkpointing = model.is_gradient_checkpointing
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward
        vars(model.config).clear()
        vars(model.config).update(config)
        model.generation_config = generation
        if model.is_gradient_checkpointing and not checkpointing:
            model.gradient_checkpointing_disable()
        for module, mode in training.items():
            module.training = mode
        for parameter, wanted in trainable.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's random numbers, and put their states back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
