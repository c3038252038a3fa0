"""A model of 200 thousand random weights, with the miniature's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlforget.domains.miniature.pretrain import build_model
from rlforget.domains.miniature.tokenizer import build_tokenizer
from rlforget.training.quiet import quiet


@pytest.fixture
def model() -> Any:
    return build_model(0).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The model of `model` as a folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with quiet():
        build_model(0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
