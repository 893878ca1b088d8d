"""GGUF files of small mixtures of experts with random weights, as the `gguf` library writes them."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import pre_tokenizers

VOCABULARY, HIDDEN, NEURONS, HEADS, EXPERTS, PER_TOKEN, LAYERS, CONTEXT = 259, 256, 256, 4, 8, 2, 2, 128
SHARED = 320
"""Neurons of a part that all tokens share."""


def write_gguf(path: Path, architecture: str, kind: GGMLQuantizationType = GGMLQuantizationType.F32,
               seed: int = 0) -> Path:
    """A model of an architecture as llama.cpp names them (llama: a Mixtral), its matrices quantized as `kind`, with
    bytes as tokens."""
    random, writer = np.random.default_rng(seed), GGUFWriter(path, architecture)
    head = HIDDEN // HEADS
    numbers = {"block_count": LAYERS, "context_length": CONTEXT, "embedding_length": HIDDEN,
               "feed_forward_length": NEURONS, "attention.head_count": HEADS, "attention.head_count_kv": HEADS,
               "expert_count": EXPERTS, "expert_used_count": PER_TOKEN}
    if architecture == "qwen3moe":
        numbers |= {"expert_feed_forward_length": NEURONS, "feed_forward_length": 3 * NEURONS,
                    "attention.key_length": head, "attention.value_length": head}
    if architecture in ("qwen2moe", "granitemoe", "deepseek", "gpt-oss"):
        numbers |= {"expert_feed_forward_length": NEURONS}
    if architecture in ("qwen2moe", "granitemoe"):
        numbers |= {"expert_shared_feed_forward_length": SHARED, "feed_forward_length": 3 * NEURONS}
    if architecture == "granitemoe":
        numbers |= {"feed_forward_length": NEURONS}
        for name, value in (("embedding_scale", 6.0), ("residual_scale", 0.25), ("attention.scale", 0.1),
                            ("logit_scale", 4.0)):
            writer.add_float32(f"granitemoe.{name}", value)
    if architecture == "deepseek":
        numbers |= {"expert_shared_count": 2, "leading_dense_block_count": 1, "feed_forward_length": 3 * NEURONS}
        writer.add_float32("deepseek.expert_weights_scale", 1.0)
    if architecture == "gpt-oss":
        numbers |= {"attention.sliding_window": 24, "attention.key_length": head, "attention.value_length": head}
    if architecture in ("llama", "deepseek", "granitemoe"):
        numbers |= {"rope.dimension_count": head, "vocab_size": VOCABULARY}
    for name, value in numbers.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    _add_tokenizer(writer)
    for name, shape in _shapes(architecture).items():
        values = random.standard_normal(shape, np.float32)
        if name.endswith("bias"):
            values *= np.float32(3.0 if "gate_exps" in name or "up_exps" in name else 0.3)
        elif len(shape) == 1 and "gate_inp" not in name:
            values = 1 + 0.2 * values
        else:
            values *= np.float32(1.0 if name.startswith("token") else 1.5 / shape[-1] ** 0.5)
        plain = (len(shape) == 1 or "gate_inp" in name or name.endswith("bias")
                 or kind is GGMLQuantizationType.F32)
        writer.add_tensor(name if name.endswith("bias") else f"{name}.weight",
                          values.astype(np.float32) if plain else quantize(values, kind),
                          raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    norms: dict[str, tuple[int, ...]] = {}
    if architecture in ("olmoe", "qwen3moe"):
        size = HIDDEN if architecture == "olmoe" else HIDDEN // HEADS
        norms = {"attn_q_norm": (size,), "attn_k_norm": (size,)}
    block = {"attn_norm": (HIDDEN,), **{f"attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")},
             **norms, "ffn_norm": (HIDDEN,), "ffn_gate_inp": (EXPERTS, HIDDEN),
             "ffn_gate_exps": (EXPERTS, NEURONS, HIDDEN), "ffn_up_exps": (EXPERTS, NEURONS, HIDDEN),
             "ffn_down_exps": (EXPERTS, HIDDEN, NEURONS)}
    shared = SHARED if architecture in ("qwen2moe", "granitemoe") else 2 * NEURONS
    if architecture in ("qwen2moe", "granitemoe", "deepseek"):
        block |= {"ffn_gate_shexp": (shared, HIDDEN), "ffn_up_shexp": (shared, HIDDEN), "ffn_down_shexp":
                  (HIDDEN, shared)}
    if architecture == "qwen2moe":
        block |= {"ffn_gate_inp_shexp": (HIDDEN,), **{f"attn_{part}.bias": (HIDDEN,) for part in "qkv"}}
    if architecture == "gpt-oss":
        block |= {f"attn_{part}.bias": (HIDDEN,) for part in ("q", "k", "v", "output")}
        block |= {"attn_sinks": (HEADS,), "ffn_gate_inp.bias": (EXPERTS,), "ffn_gate_exps.bias": (EXPERTS, NEURONS),
                  "ffn_up_exps.bias": (EXPERTS, NEURONS), "ffn_down_exps.bias": (EXPERTS, HIDDEN)}
        block["post_attention_norm"] = block.pop("ffn_norm")
    blocks = [block] * LAYERS
    if architecture == "deepseek":
        first = {name: shape for name, shape in block.items() if "exp" not in name and "inp" not in name}
        blocks[0] = first | {"ffn_gate": (3 * NEURONS, HIDDEN), "ffn_up": (3 * NEURONS, HIDDEN), "ffn_down":
                             (HIDDEN, 3 * NEURONS)}
    return {"token_embd": (VOCABULARY, HIDDEN), "output_norm": (HIDDEN,), "output": (VOCABULARY, HIDDEN),
            **{f"blk.{layer}.{name}": shape for layer, of in enumerate(blocks) for name, shape in of.items()}}


def _add_tokenizer(writer: GGUFWriter) -> None:
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"])
    writer.add_array("tokenizer.ggml.token_type", [3, 3, *[1] * 257])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
