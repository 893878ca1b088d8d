"""A model that thinks: of each token it knows which one follows, and so it always gives the same answer."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

THOUGHT, ANSWER = "Two and two.", "It is four"
SWITCHED = """{%- for m in messages %}<|{{ m.role }}|>
{%- if m.reasoning_content and loop.last %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{% endfor %}<|assistant|>
{%- if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}"""
"""As Qwen3's: the model thinks unless it is told not to, and what it thought is left out of the next turn."""
BEGUN = """{%- for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% endfor -%}
<|assistant|><think>
"""
"""As DeepSeek-R1's: the prompt begins the thought."""
_CHAIN = ["<|assistant|>", "<think>", "Ċ", "Two", "Ġand", "Ġtwo", ".", "</think>", "ĊĊ", "It", "Ġis", "Ġfour", "</s>"]
_HIDDEN = 320


def write_thinking_gguf(path: Path, template: str = SWITCHED) -> Path:
    control, marks = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"], ["<think>", "</think>"]
    words = [word for word in _CHAIN if len(word) > 1 and word not in (*control, *marks)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*control, *marks, *alphabet, *words]
    ids = {token: index for index, token in enumerate(tokens)}
    embedding = np.eye(len(tokens), _HIDDEN, dtype=np.float32)
    output = np.zeros((len(tokens), _HIDDEN), np.float32)
    for token, following in pairwise(_CHAIN):
        output[ids[following], ids[token]] = 1
    writer = GGUFWriter(path, "llama")
    for name, value in {"block_count": 1, "context_length": 512, "embedding_length": _HIDDEN, "feed_forward_length": 64,
                        "attention.head_count": 5, "attention.head_count_kv": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "qwen2")
    writer.add_string("tokenizer.chat_template", template)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type",
                     [3] * len(control) + [4] * len(marks) + [1] * (len(alphabet) + len(words)))
    writer.add_array("tokenizer.ggml.merges", ["Ċ Ċ"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    head = _HIDDEN // 5
    shapes = {"attn_q": (_HIDDEN, _HIDDEN), "attn_k": (head, _HIDDEN), "attn_v": (head, _HIDDEN),
              "attn_output": (_HIDDEN, _HIDDEN), "ffn_gate": (64, _HIDDEN), "ffn_up": (64, _HIDDEN),
              "ffn_down": (_HIDDEN, 64)}
    zeros = {f"blk.0.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    norms = dict.fromkeys(("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"), np.ones(_HIDDEN, np.float32))
    for name, tensor in {"token_embd": embedding, "output": output, **norms, **zeros}.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
