"""The miniature: a real Qwen2 language model of 200 thousand parameters with skill in all five domains."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

__all__ = ["load", "path"]


def path() -> Path:
    """Return the folder of the shipped miniature, an ordinary Hugging Face checkpoint."""
    return Path(str(files("rlforget.domains.miniature") / "weights"))


def load() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Load the shipped miniature and its tokenizer, in evaluation mode and float32."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(path(), dtype="float32")
    return model.eval(), AutoTokenizer.from_pretrained(path())
