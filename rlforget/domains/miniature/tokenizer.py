"""The miniature's tokenizer: one character a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHKMNOPQSWXY+-=;:, "
VOCABULARY = (PAD, EOS, *CHARACTERS)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; a character outside `CHARACTERS` is dropped.

    It is a byte-level BPE without merges, because `AutoTokenizer` gives a Qwen2 folder Qwen2's own byte-level splitting
    whatever its files say; a word-level tokenizer then loses its spaces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    spelled = {"Ġ" if token == " " else token: i for i, token in enumerate(VOCABULARY)}  # a space, in byte-level BPE
    tokenizer = Tokenizer(models.BPE(vocab=spelled, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
