"""Tiny GGUF files of a family that edgert does not know, with random weights: for llama.cpp to run."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from gguf.constants import TokenType

from edgert.text.tokenizer import BYTE_OF

TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
            "<|im_start|>assistant\n")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPACE = next(character for character, byte in BYTE_OF.items() if byte == ord(" "))


def write_foreign(path: Path, *, layers: int = 2, hidden: int = 64, context: int = 1024,
                  template: str | None = TEMPLATE, seed: int = 0) -> Path:
    """A model of the family orion, whose tokens are bytes, " t", and three special ones."""
    random = np.random.default_rng(seed)
    tokens = [*BYTE_OF, f"{_SPACE}t", *SPECIAL]
    writer = GGUFWriter(path, "orion")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(2)
    writer.add_rope_dimension_count(hidden // 2)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 3) + [TokenType.CONTROL] * 3)
    writer.add_token_merges([f"{_SPACE} t"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    if template is not None:
        writer.add_chat_template(template)

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        writer.add_tensor(name, (around + random.standard_normal(shape) / 8).astype(np.float32))

    add("token_embd.weight", len(tokens), hidden)
    for layer in range(layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            add(f"{block}{norm}.weight", hidden, around=1.0)
            add(f"{block}{norm}.bias", hidden)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}{matrix}.weight", hidden, hidden)
        for matrix, rows, columns in (("ffn_gate", 2 * hidden, hidden), ("ffn_up", 2 * hidden, hidden),
                                      ("ffn_down", hidden, 2 * hidden)):
            add(f"{block}{matrix}.weight", rows, columns)
    add("output_norm.weight", hidden, around=1.0)
    add("output_norm.bias", hidden)
    add("output.weight", len(tokens), hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
