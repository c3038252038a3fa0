"""The shapes of models that configurations name, so that they can be checked without the hub.

Sources: each model's `config.json` on the hub.
"""

from __future__ import annotations

from typing import Any

_QWEN: dict[str, Any] = {"vocab_size": 151936, "tie_word_embeddings": True, "dtype": "bfloat16"}

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2.5-3B-Instruct": (
        "qwen2",
        _QWEN
        | {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
    ),
    "Qwen/Qwen3-4B-Thinking-2507": (
        "qwen3",
        _QWEN
        | {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
}
"""{model id: (transformers' model type, what its configuration sets)}."""
