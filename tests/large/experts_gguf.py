"""The same random weights as a bundle's, as a GGUF file: llama.cpp is measured with it (make_experts.py)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

from edgert.models.expert_config import Config
from edgert.models.tensors import ALWAYS_RESIDENT, FEED_FORWARD, TensorSpec

_NORMAL, _UNUSED = 1, 5
"""gguf-py, TokenType."""


class Repeated(Protocol):
    """A tensor whose rows are `values`, over and over."""

    values: np.ndarray


def write(path: Path, config: Config, tensors: Mapping[str, Repeated], tokenizer: str) -> None:
    """Write the file: routers and vectors as float32, all other matrices as Q4_0, what is the same quantized once.

    tensors: by the names that bundles have. tokenizer: a byte-level tokenizer.json.
    """
    writer, specs = GGUFWriter(path, config.architecture), list(config.tensors())
    _describe(writer, config)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for spec in specs:
        size = int(np.prod(spec.shape))
        block, length = GGML_QUANT_SIZES[kind_of(spec)]
        writer.add_tensor_info(spec.gguf, _shape(config, spec), np.dtype(np.float32), size // block * length,
                               kind_of(spec))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file, quantized = writer.fout[0], {}
    for spec in specs:
        writer.write_padding(file, file.tell())
        values = tensors[spec.name].values
        if (key := (id(values), kind_of(spec))) not in quantized:
            whole = values.astype(np.float32)
            quantized[key] = whole if kind_of(spec) is Type.F32 else quantize(whole, kind_of(spec))
        for _ in range(spec.shape[0] // len(values)):
            file.write(quantized[key].data)
    writer.write_padding(file, file.tell())
    writer.close()


def kind_of(spec: TensorSpec) -> Type:
    return Type.Q4_0 if spec.is_matrix and spec.role not in ALWAYS_RESIDENT else Type.F32


def _shape(config: Config, spec: TensorSpec) -> tuple[int, ...]:
    """Of experts' matrices: (experts, rows, columns)."""
    rows, *columns = spec.shape
    return (config.num_experts, rows // config.num_experts, *columns) if spec.role in FEED_FORWARD else spec.shape


def _describe(writer: GGUFWriter, config: Config) -> None:
    writer.add_type("model")
    writer.add_name("Random experts")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(2)


def _add_tokenizer(writer: GGUFWriter, tokenizer: str, vocabulary: int) -> None:
    """Its vocabulary is filled up with [PADn]."""
    model = json.loads(tokenizer)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    padding = [f"[PAD{number}]" for number in range(len(tokens), vocabulary)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *padding])
    writer.add_token_types([*[_NORMAL] * len(tokens), *[_UNUSED] * len(padding)])
    writer.add_token_merges(list(_merges(model["merges"])))
    writer.add_eos_token_id(2)


def _merges(merges: list[str] | list[list[str]]) -> Iterator[str]:
    return (merge if isinstance(merge, str) else " ".join(merge) for merge in merges)
