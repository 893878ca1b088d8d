"""Tiny GGUF files of a Llama with random weights, of any type that GGUF has, written with the gguf library's writer."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFEndian, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

HIDDEN, INNER, VOCAB, HEADS, KV_HEADS = 256, 256, 32, 4, 2
HALVES = {Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,), Type.Q2_K: (80, 82),
          Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.IQ1_S: (0,), Type.IQ1_M: (),
          Type.IQ2_XXS: (0,), Type.IQ2_XS: (0,), Type.IQ2_S: (0,), Type.IQ3_XXS: (0,), Type.IQ3_S: (0,),
          Type.IQ4_NL: (0,), Type.IQ4_XS: (0,), Type.TQ1_0: (52,), Type.TQ2_0: (64,), Type.MXFP4: (), Type.NVFP4: ()}
"""Where in a block of the type the float16 values are."""
TYPES = (Type.F32, Type.F16, Type.BF16, *HALVES)

def random_tensor(type_: Type, rows: int, columns: int, seed: int = 0, *, like_a_model: bool = False) -> np.ndarray:
    """The raw bytes of a tensor of finite values; quantized ones are arbitrary blocks. like_a_model: with scales that
    are all of one size."""
    random = np.random.default_rng(seed)
    if type_ not in HALVES:
        return quantize(random.standard_normal((rows, columns)).astype(np.float32), type_)
    block, size = GGML_QUANT_SIZES[type_]
    raw = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for column in HALVES[type_]:
        d = random.uniform(0.5, 1.5, (len(raw), 1)) if like_a_model else random.standard_normal((len(raw), 1))
        raw[:, column:column + 2] = d.astype(np.float16).view(np.uint8)
    if type_ in (Type.Q4_1, Type.Q5_1) and like_a_model:  # a minimum below 0
        raw[:, 2:4] = (-8 * raw[:, :2].copy().view(np.float16)).view(np.uint8)
    if type_ == Type.IQ1_M:  # whose float16 is in the upper halves of four numbers
        raw[:, 55] = raw[:, 55] & 15 | 0x30
    if type_ == Type.MXFP4:
        raw[:, 0] = random.integers(120, 126, len(raw))
    if type_ == Type.TQ2_0 and like_a_model:  # 2 bits for each weight, of which ggml uses 0, 1 and 2
        raw[:, :64] &= ~(raw[:, :64] >> 1 & 0x55)
    if type_ == Type.NVFP4 and like_a_model:
        raw[:, :4] = random.integers(48, 64, (len(raw), 4))
    return raw.reshape(rows, -1)


def shapes(*, tied: bool = True) -> dict[str, tuple[int, ...]]:
    key_value = HIDDEN * KV_HEADS // HEADS
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    block = {"attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (key_value, HIDDEN),
             "attn_v": (key_value, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_norm": (HIDDEN,),
             "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    found.update({f"blk.0.{name}.weight": shape for name, shape in block.items()})
    return found if tied else {**found, "output.weight": (VOCAB, HIDDEN)}


def write(path: Path, *, type_: Type = Type.F16, metadata: dict | None = None, tensors: dict | None = None,
          tied: bool = True, architecture: str = "llama", endian: GGUFEndian = GGUFEndian.LITTLE,
          tensors_in_a_file: int = 0) -> Path:
    """A whole tiny model. metadata overrides or (None) removes keys; tensors overrides, adds or (None) removes.
    tensors_in_a_file: in so many files as that takes, the first of which comes back; 0 for one."""
    writer = GGUFWriter(path, architecture, endianess=endian, split_max_tensors=tensors_in_a_file)
    values = {"block_count": 1, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": INNER,
              "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    values = {f"{architecture}.{key}": value for key, value in values.items()}
    tokens = ["<s>", "</s>", "Ġ", "ab", *(chr(97 + i) for i in range(26))]
    values = {"general.name": "Tiny", "general.license": "apache-2.0", "general.file_type": 1, **values,
              f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
              "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3, 3, *[1] * 28],
              "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
              "tokenizer.chat_template": "{{ messages }}", **(metadata or {})}
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    content = {name: (random_tensor(type_, *shape), type_) if len(shape) == 2 else
               (np.ones(shape, dtype=np.float32), Type.F32) for name, shape in shapes(tied=tied).items()}
    for name, entry in {**content, **(tensors or {})}.items():
        if entry is not None:
            writer.add_tensor(name, entry[0], raw_dtype=None if entry[0].dtype.kind == "f" else entry[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not tensors_in_a_file else min(path.parent.glob(f"{path.stem}-*.gguf"))
