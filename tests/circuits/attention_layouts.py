"""Tiny models of every layout of attention that `test_restoration` covers, with 2 layers and 4 heads.

`tiny_models` has the few that the methods are tested on; here each stands for a way of storing heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ARCHITECTURES = (
    *("qwen2", "qwen3", "gemma3", "llama", "gpt2", "gpt_neox", "phi3", "opt", "olmo2", "falcon", "gpt_oss"),
    *("gptj", "bloom", "mpt", "gpt_bigcode", "cohere", "qwen3_next"),
)

_SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}
_OWN: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 6},
    "gemma3": {"head_dim": 6, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4, "n_inner": 24},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 24, "multi_query": False},
    "cohere": {"use_qk_norm": True},
    "qwen3_next": {"head_dim": 8, "layer_types": ["full_attention"] * 2, "num_experts": 2, "num_experts_per_tok": 1},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16},
}
_CLASSES = {
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3": "Gemma3",
    "llama": "Llama",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "phi3": "Phi3",
    "opt": "OPT",
    "olmo2": "Olmo2",
    "falcon": "Falcon",
    "gpt_oss": "GptOss",
    "gptj": "GPTJ",
    "bloom": "Bloom",
    "mpt": "Mpt",
    "gpt_bigcode": "GPTBigCode",
    "cohere": "Cohere",
    "qwen3_next": "Qwen3Next",
}
_MODELS = {"gpt2": "GPT2LMHeadModel"}
_CONFIGS = {"gemma3": "Gemma3TextConfig"}


def tiny(name: str) -> nn.Module:
    """A model of random weights and biases, in evaluation mode and float32; the same at each call."""
    import transformers

    config_class = getattr(transformers, _CONFIGS.get(name, f"{_CLASSES[name]}Config"))
    config = config_class(**_SIZES, **_OWN.get(name, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, _MODELS.get(name, f"{_CLASSES[name]}ForCausalLM"))(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()
