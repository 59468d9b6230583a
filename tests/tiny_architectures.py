"""Tiny causal language models of many architectures, all with random weights that matter.

Windows and chunks are 8 tokens, far shorter than the sequences that tests score.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["ARCHITECTURES", "WINDOW", "build"]

VOCABULARY = 61
WINDOW = 8

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY}
GPT |= {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 24}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
SSM = {
    "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_expand": 2, "mamba_d_conv": 4,
}  # fmt: skip

# name -> (model type, settings beside or instead of the common ones; `...` leaves one out)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # full attention
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "mixtral": ("mixtral", EXPERTS),
    "mistral": ("mistral", {"sliding_window": None}),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "stablelm": ("stablelm", {}),
    "smollm3": ("smollm3", {}),
    "nemotron": ("nemotron", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {}),
    "cohere": ("cohere", {}),
    "gemma": ("gemma", {}),
    "falcon": ("falcon", {"alibi": False, "head_dim": ...}),
    "xglm": (
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "init_std": 0.2},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
            "moe_intermediate_size": 24, "first_k_dense_replace": 1, "q_lora_rank": 16,
            "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    # windows and chunks
    "mistral_window": ("mistral", {"sliding_window": WINDOW}),
    "ministral": ("ministral", SLIDING),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    ),
    "phi3_window": ("phi3", {"sliding_window": WINDOW}),
    "starcoder2_window": ("starcoder2", {"sliding_window": WINDOW}),
    "gemma2": ("gemma2", SLIDING),
    "gemma3": ("gemma3_text", SLIDING),
    "gemma4": (
        "gemma4_text",
        {**SLIDING, "global_head_dim": 8, "hidden_size_per_layer_input": 4,
         "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0},
    ),
    "gpt_oss": ("gpt_oss", {**EXPERTS, **SLIDING}),
    "olmo3": ("olmo3", SLIDING),
    "exaone4": ("exaone4", SLIDING),
    "cohere2": ("cohere2", SLIDING),
    "llama4": (
        "llama4_text",
        {
            **EXPERTS, "intermediate_size_mlp": 48, "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
            "moe_layers": [1],
        },
    ),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 2, "num_heads": 4, "window_size": WINDOW,
            "attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"],
        },
    ),
    "modernbert_decoder": (
        "modernbert-decoder",
        {"local_attention": 2 * WINDOW, "layer_types": SLIDING["layer_types"]},
    ),
    # recurrent, convolutional and hybrid layers
    "qwen3_next": ("qwen3_next", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24}),
    "qwen3_5": ("qwen3_5_text", LINEAR),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "falcon_h1": ("falcon_h1", SSM),
    "bamba": ("bamba", {**SSM, "attn_layer_indices": [1]}),
    "jamba": (
        "jamba",
        {
            **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
            "mamba_dt_rank": 4, "use_mamba_kernels": False,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**SSM, **EXPERTS, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    "mamba": ("mamba", {"state_size": 8, "time_step_rank": 4, "conv_kernel": 4}),
    "mamba2": (
        "mamba2",
        {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"attention_window_size": WINDOW, "block_types": ["recurrent", "attention"],
         "lru_width": 32, "num_key_value_heads": 1},
    ),
    # ALiBi
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
                    "vocab_size": VOCABULARY}),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2}),
    "falcon_alibi": ("falcon", {"alibi": True, "head_dim": ...}),
}  # fmt: skip


def build(name: str, *, seed: int = 0, **settings: Any) -> Any:
    """A tiny random model, ready to be asked; by its name in `ARCHITECTURES`."""
    model_type, own = ARCHITECTURES[name]
    every = {**COMMON, **own, **settings}
    given = {name: value for name, value in every.items() if value is not ...}
    config = AutoConfig.for_model(model_type, **given)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    torch.set_rng_state(state)
    return model.eval()
