"""Small GGUF files of the families that edgert and llama.cpp both know, with random weights, as llama.cpp's conversion
would write them: its names of tensors and of metadata, written out here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, TokenType

from edgert.text.tokenizer import BYTE_OF

HIDDEN, NEURONS, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD, CONTEXT = 256, 320, 4, 4, 2, 64, 512
VOCABULARY = 256 + 1 + 2
_SPACE = next(character for character, byte in BYTE_OF.items() if byte == ord(" "))
Q, KV = HEADS * HEAD, KEY_VALUE_HEADS * HEAD


@dataclass(frozen=True)
class Kind:
    """What tells one family from the others. metadata: below its name. vectors, matrices: of a layer, by name, with
    their shapes; vectors, some in rows, are not rounded. biased: which of all tensors have a bias."""

    family: str
    metadata: dict[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    matrices: dict[str, tuple[int, int]] = field(default_factory=dict)
    vectors: dict[str, int | tuple[int, int]] = field(default_factory=dict)
    biased: frozenset[str] = frozenset()
    layer_norm: bool = False
    tied: bool = False
    layers: int = LAYERS
    rope_factors: dict[str, np.ndarray] = field(default_factory=dict)


QKV = {"attn_q": (Q, HIDDEN), "attn_k": (KV, HIDDEN), "attn_v": (KV, HIDDEN)}
OUTPUT = {"attn_output": (HIDDEN, Q)}
GATED = {"ffn_gate": (NEURONS, HIDDEN), "ffn_up": (NEURONS, HIDDEN), "ffn_down": (HIDDEN, NEURONS)}
PLAIN = {"ffn_up": (NEURONS, HIDDEN), "ffn_down": (HIDDEN, NEURONS)}
USUAL = {**QKV, **OUTPUT, **GATED}
NORMS = frozenset({"attn_norm", "ffn_norm", "output_norm"})
FUSED = {"attn_qkv": (Q + 2 * KV, HIDDEN), **OUTPUT}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
FACTORS = {f"rope_factors_{kind}.weight": 1 + np.arange(24, dtype=np.float32) * step
           for kind, step in (("short", 0.05), ("long", 0.5))}
WINDOW = {"attention.key_length": HEAD, "attention.value_length": HEAD, "attention.sliding_window": 48}
SANDWICH = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
ALL_HEADS = {"attention.head_count_kv": HEADS}

KINDS = {
    "llama": Kind("llama", matrices=USUAL),
    "llama, yarn": Kind("llama", YARN, matrices=USUAL),
    "llama, linear": Kind("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}, matrices=USUAL),
    "qwen2": Kind("qwen2", matrices=USUAL, biased=frozenset(QKV)),
    "qwen3": Kind("qwen3", {"rope.freq_base": 1e6}, matrices=USUAL, vectors={"attn_q_norm": HEAD, "attn_k_norm": HEAD}),
    "qwen3, yarn": Kind("qwen3", YARN, matrices=USUAL, vectors={"attn_q_norm": HEAD, "attn_k_norm": HEAD}, tied=True),
    "mistral3": Kind("mistral3", {**YARN, "rope.scaling.original_context_length": 32,
                                  "rope.scaling.yarn_log_multiplier": 1.0, "rope.scaling.yarn_beta_fast": 16.0,
                                  "attention.temperature_scale": 0.1}, matrices=USUAL),
    "phi3": Kind("phi3", matrices={**FUSED, **PLAIN, "ffn_up": (2 * NEURONS, HIDDEN)}),
    "phi3, longrope": Kind("phi3", {"rope.dimension_count": 48, "rope.scaling.original_context_length": 256,
                                    "rope.scaling.attn_factor": 1.19}, rope_factors=FACTORS, tied=True,
                           matrices={**FUSED, **PLAIN, "ffn_up": (2 * NEURONS, HIDDEN)}),
    "granite": Kind("granite", {"attention.scale": 0.1, "embedding_scale": 6.0, "residual_scale": 0.22,
                                "logit_scale": 4.0}, matrices=USUAL),
    "smollm3": Kind("smollm3", {"rope.freq_base": 2e6}, matrices=USUAL, tied=True),
    "bitnet": Kind("bitnet", matrices=USUAL, tied=True,
                   vectors={"attn_sub_norm": HIDDEN, "ffn_sub_norm": NEURONS}),
    "gemma2": Kind("gemma2", {**WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
                   norms=SANDWICH, matrices=USUAL, tied=True),
    "gemma3": Kind("gemma3", {**WINDOW, "rope.freq_base": 1e6}, norms=SANDWICH, matrices=USUAL, tied=True, layers=7,
                   vectors={"attn_q_norm": HEAD, "attn_k_norm": HEAD}),
    "olmo2": Kind("olmo2", {"rope.freq_base": 5e5}, norms=("post_attention_norm", "post_ffw_norm"), matrices=USUAL,
                  vectors={"attn_q_norm": Q, "attn_k_norm": KV}),
    "stablelm": Kind("stablelm", {"rope.dimension_count": 16, "use_parallel_residual": False}, matrices=USUAL,
                     biased=NORMS | QKV.keys(), layer_norm=True),
    "stablelm, side by side": Kind("stablelm", {"rope.dimension_count": 16, "use_parallel_residual": True},
                                   norms=("attn_norm",), matrices=USUAL, biased=NORMS, layer_norm=True),
    "stablelm, heads": Kind("stablelm", {"rope.dimension_count": 16, "use_parallel_residual": True},
                            norms=("attn_norm",), matrices=USUAL, biased=NORMS, layer_norm=True,
                            vectors={"attn_q_norm": (HEADS, HEAD), "attn_k_norm": (KEY_VALUE_HEADS, HEAD)}),
    "phi2": Kind("phi2", {"rope.dimension_count": 24, **ALL_HEADS}, norms=("attn_norm",), layer_norm=True,
                 matrices={**QKV, "attn_k": (Q, HIDDEN), "attn_v": (Q, HIDDEN), **OUTPUT, **PLAIN},
                 biased=NORMS | QKV.keys() | OUTPUT.keys() | PLAIN.keys() | {"output"}),
    "gptneox": Kind("gptneox", {"rope.dimension_count": 16, "use_parallel_residual": True, **ALL_HEADS},
                    layer_norm=True, matrices={**OUTPUT, "attn_qkv": (3 * Q, HIDDEN), **PLAIN},
                    biased=NORMS | OUTPUT.keys() | PLAIN.keys() | {"attn_qkv"}),
    "gptneox, in turn": Kind("gptneox", {"rope.dimension_count": 64, "use_parallel_residual": False, **ALL_HEADS},
                             layer_norm=True, matrices={**OUTPUT, "attn_qkv": (3 * Q, HIDDEN), **PLAIN},
                             biased=NORMS | OUTPUT.keys() | PLAIN.keys() | {"attn_qkv"}),
}


def metadata_of(name: str) -> tuple[str, dict[str, Any], set[str], dict[str, tuple[float, ...]]]:
    """Of one of KINDS: its family, metadata, some names of tensors, and the divisors of frequencies."""
    kind = KINDS[name]
    tensors = {f"blk.0.{name}.weight" for name in (*kind.norms, *kind.matrices, *kind.vectors)}
    return (kind.family, _metadata(kind), tensors | {f"blk.0.{name}.bias" for name in kind.biased},
            {name: tuple(map(float, factors)) for name, factors in kind.rope_factors.items()})


def _metadata(kind: Kind) -> dict[str, Any]:
    values = {"context_length": CONTEXT, "embedding_length": HIDDEN, "feed_forward_length": NEURONS,
              "block_count": kind.layers, "attention.head_count": HEADS, "attention.head_count_kv": KEY_VALUE_HEADS,
              f"attention.layer_norm_{'' if kind.layer_norm else 'rms_'}epsilon": 1e-5, "rope.dimension_count": HEAD,
              **kind.metadata}
    return {f"{kind.family}.{key}": value for key, value in values.items()}


def write_family(path: Path, name: str, *, of: GGMLQuantizationType = GGMLQuantizationType.F32, seed: int = 0,
                 floats: bool = False) -> Path:
    """The file of one of KINDS; of: the type of its matrices whose rows are whole blocks of it, others are F32. floats:
    all are F32, of the values that the type has."""
    kind, random = KINDS[name], np.random.default_rng(seed)
    writer = GGUFWriter(path, kind.family)
    for key, value in _metadata(kind).items():
        add = (writer.add_bool if isinstance(value, bool) else writer.add_string if isinstance(value, str)
               else writer.add_uint32 if isinstance(value, int) else writer.add_float32)
        add(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*BYTE_OF, f"{_SPACE}t", "<|endoftext|>", "<|im_end|>"])
    writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.CONTROL] * 2)
    writer.add_token_merges([f"{_SPACE} t"])
    writer.add_eos_token_id(VOCABULARY - 1)

    def add_vector(name: str, size: int | tuple[int, int], around: float) -> None:
        writer.add_tensor(name, (around + 0.3 * random.standard_normal(size)).astype(np.float32))

    def add_matrix(name: str, rows: int, columns: int, size: float) -> None:
        values = (size * random.standard_normal((rows, columns))).astype(np.float32)
        whole = columns % GGML_QUANT_SIZES[of][0] == 0
        type_ = of if whole else GGMLQuantizationType.F32
        data = quants.quantize(values, type_)
        if floats:
            data, type_ = quants.dequantize(data, type_), GGMLQuantizationType.F32
        writer.add_tensor(name, data, raw_dtype=type_)

    def add_biased(name: str, rows: int) -> None:
        if name.rpartition(".")[2] in kind.biased:
            add_vector(name + ".bias", rows, 0.0)

    add_matrix("token_embd.weight", VOCABULARY, HIDDEN, 0.2 if kind.tied else 1.0)
    for name, factors in kind.rope_factors.items():
        writer.add_tensor(name, factors)
    for layer in range(kind.layers):
        for name in kind.norms:
            add_vector(f"blk.{layer}.{name}.weight", HIDDEN, 1.0)
            add_biased(f"blk.{layer}.{name}", HIDDEN)
        for name, size in kind.vectors.items():
            add_vector(f"blk.{layer}.{name}.weight", size, 1.0)
        for name, (rows, columns) in kind.matrices.items():
            # Queries and keys larger than usual: attention that looks at single tokens, not at all of them alike.
            size = 1.5 if name in ("attn_q", "attn_k", "attn_qkv") else 1.0
            add_matrix(f"blk.{layer}.{name}.weight", rows, columns, size * columns ** -0.5)
            add_biased(f"blk.{layer}.{name}", rows)
    add_vector("output_norm.weight", HIDDEN, 1.0)
    add_biased("output_norm", HIDDEN)
    if not kind.tied:
        add_matrix("output.weight", VOCABULARY, HIDDEN, 3 * HIDDEN ** -0.5)
        add_biased("output", VOCABULARY)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
