"""The miniature: a real Qwen2 language model of 200 thousand parameters with skill in all five domains."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rlforget.errors import missing_extra

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

__all__ = ["load", "path"]


def path() -> Path:
    """Return the folder of the shipped miniature, an ordinary Hugging Face checkpoint."""
    return Path(str(files("rlforget.domains.miniature") / "weights"))


def load() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Load the shipped miniature and its tokenizer, in evaluation mode and float32.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer, Qwen2ForCausalLM
        from transformers.utils import logging
    except ModuleNotFoundError as fault:
        raise missing_extra("transformers", "train") from fault

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for a file of 0.8 MB is noise
    try:
        model = Qwen2ForCausalLM.from_pretrained(path(), dtype="float32")
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval(), AutoTokenizer.from_pretrained(path())
