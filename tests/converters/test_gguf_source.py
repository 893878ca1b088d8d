"""Tiny GGUF files written with the gguf library's writer, read back; and files made to harm."""

import hashlib
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFEndian, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgert.converters import gguf_header
from edgert.converters.gguf_header import read_header
from edgert.converters.gguf_source import open_gguf
from edgert.errors import SourceError

HIDDEN, INNER, VOCAB, HEADS, KV_HEADS = 256, 256, 32, 4, 2
HALVES = {Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,), Type.Q2_K: (80, 82),
          Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}
"""Where in a block of the type the float16 values are."""
TYPES = (Type.F32, Type.F16, Type.BF16, *HALVES)


def random_tensor(type_: Type, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """The raw bytes of a tensor of finite values; quantized ones are arbitrary blocks."""
    random = np.random.default_rng(seed)
    if type_ not in HALVES:
        return quantize(random.standard_normal((rows, columns)).astype(np.float32), type_)
    block, size = GGML_QUANT_SIZES[type_]
    raw = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for column in HALVES[type_]:
        raw[:, column:column + 2] = random.standard_normal((len(raw), 1)).astype(np.float16).view(np.uint8)
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
          tied: bool = True, architecture: str = "llama", endian: GGUFEndian = GGUFEndian.LITTLE) -> Path:
    """A whole tiny model. metadata overrides or (None) removes keys; tensors overrides, adds or (None) removes."""
    writer = GGUFWriter(path, architecture, endianess=endian)
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
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_source(tiny: Path) -> None:
    source = open_gguf(tiny)
    assert source.config.rope_pairing == "interleaved"
    assert source.config.tie_word_embeddings
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == {
        spec.name: spec.shape for spec in source.config.tensors()}
    assert source.chat_template == "{{ messages }}"
    assert source.generation["bos_token_id"] == 0
    assert 1 in source.generation["eos_token_ids"]
    sha256 = hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert source.provenance == {"source": "tiny.gguf", "sha256": sha256, "type": "gguf", "file_type": "F16",
                                 "name": "Tiny", "license": "apache-2.0"}


def test_header_is_what_the_gguf_library_reads(tiny: Path) -> None:
    header, reader = read_header(tiny), GGUFReader(tiny)
    assert header.metadata == {name: field.contents() for name, field in reader.fields.items() if "." in name
                               and not name.startswith("GGUF.")}
    assert {name: (info.shape, info.type, info.offset, info.size) for name, info in header.tensors.items()} == {
        tensor.name: (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        for tensor in reader.tensors}


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_every_type(tmp_path: Path, type_: Type) -> None:
    source = open_gguf(write(tmp_path / "m.gguf", type_=type_, tied=False))
    tensor = source.tensors["model.layers.0.mlp.down_proj.weight"]
    expected = dequantize(random_tensor(type_, HIDDEN, INNER), type_)
    assert tensor.type_name == type_.name
    np.testing.assert_array_equal(tensor.read(0, HIDDEN), expected)
    np.testing.assert_array_equal(tensor.read(7, 40), expected[7:40])
    assert tensor.read(9, 9).shape == (0, INNER)
    assert source.tensors["lm_head.weight"].shape == (VOCAB, HIDDEN)
    norm = source.tensors["model.norm.weight"]
    np.testing.assert_array_equal(norm.read(3, 10), np.ones(7, dtype=np.float32))
    assert norm.grid(0, 4) is None
    with pytest.raises(IndexError):
        tensor.read(0, HIDDEN + 1)


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_grid(tmp_path: Path, type_: Type) -> None:
    """The values stand on the grid; those of a negative scale, which half the blocks have here, on the mirrored one."""
    tensor = open_gguf(write(tmp_path / "m.gguf", type_=type_)).tensors["model.layers.0.mlp.gate_proj.weight"]
    grid = tensor.grid(5, 50)
    if type_ not in (Type.Q4_0, Type.Q4_1, Type.Q4_K):
        assert grid is None
        return
    assert grid is not None
    assert grid.scale.shape == grid.minimum.shape == (45, HIDDEN // 32)
    assert grid.scale.dtype == grid.minimum.dtype == np.float32
    assert (grid.scale >= 0).all()
    scale, minimum = np.repeat(grid.scale, 32, axis=1), np.repeat(grid.minimum, 32, axis=1)
    values = tensor.read(5, 50)
    with np.errstate(all="ignore"):
        q = np.where(scale > 0, np.round((values + minimum) / scale), 0)
    assert q.min() >= 0
    assert q.max() <= 15
    np.testing.assert_allclose(q * scale - minimum, values, rtol=0, atol=1e-6 * np.abs(values).max())


def test_rope_factors_and_qwen2(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HIDDEN // HEADS // 2, dtype=np.float32)
    source = open_gguf(write(tmp_path / "m.gguf", tensors={"rope_freqs.weight": (factors, Type.F32)}))
    assert source.config.rope_frequency_factors == tuple(factors.tolist())
    biases = {f"blk.0.attn_{name}.bias": (np.ones(HIDDEN if name == "q" else HIDDEN // 2, dtype=np.float32), Type.F32)
              for name in "qkv"}
    qwen = open_gguf(write(tmp_path / "q.gguf", architecture="qwen2", tensors=biases))
    assert qwen.config.architecture == "qwen2"
    assert qwen.config.rope_pairing == "half"
    assert qwen.tensors["model.layers.0.self_attn.k_proj.bias"].shape == (128,)


Q = (np.zeros((HIDDEN, HIDDEN), dtype=np.float16), Type.F16)


@pytest.mark.parametrize(("changes", "message"), [
    ({"architecture": "opt"}, "llama.cpp has no OPT"),
    ({"architecture": "mamba"}, "architecture 'mamba' is not supported; supported: llama, "),
    ({"metadata": {"llama.block_count": None}}, "has no 'llama.block_count'"),
    ({"metadata": {"llama.block_count": 2}}, "tensor model.layers.1.input_layernorm.weight is missing (and 8 more)"),
    ({"metadata": {"llama.block_count": 1 << 24}}, "claims 16777216 layers but has 11 tensors"),
    ({"metadata": {"llama.attention.head_count": 0}}, "cannot be used"),
    ({"metadata": {"llama.attention.head_count_kv": [2, 2]}}, "cannot be used"),
    ({"metadata": {"llama.rope.scaling.type": "dynamic"}}, "rope scaling of type 'dynamic'"),
    ({"metadata": {"split.count": 3}}, "is one of 3 parts"),
    ({"metadata": {"tokenizer.chat_template": 7}}, "tokenizer.chat_template is not text"),
    ({"metadata": {"tokenizer.ggml.model": "bert"}}, "'bert'"),
    ({"metadata": {"tokenizer.ggml.tokens": ["a"] * 40}}, "has 40 tokens but embeddings for 32"),
    ({"tensors": {"blk.0.attn_q.weight": None}}, "tensor model.layers.0.self_attn.q_proj.weight is missing"),
    ({"tensors": {"blk.00.attn_q.weight": Q}}, "tensor blk.00.attn_q.weight is not one that architecture llama has"),
    ({"tensors": {"blk.0.ssm_a": Q}}, "tensor blk.0.ssm_a is not one"),
    ({"tensors": {"token_embd.weight": None}}, "token_embd.weight is missing"),
    ({"tensors": {"output_norm.weight": (np.ones(8, dtype=np.float32), Type.F32)}}, "has shape [8], expected [256]"),
    ({"tensors": {"rope_freqs.weight": (np.zeros(32, dtype=np.float32), Type.F32)}}, "not above 0"),
    ({"tensors": {"rope_freqs.weight": (np.ones(31, dtype=np.float32), Type.F32)}}, "factors has 31 numbers"),
    ({"tensors": {"token_embd.weight": (np.zeros((VOCAB, 66), dtype=np.uint8), Type.IQ2_XXS)}}, "quantized as IQ2_XXS"),
    ({"tensors": {"output_norm.weight": (np.zeros(272, dtype=np.uint8), Type.Q8_0)}}, "is a vector stored as Q8_0"),
    ({"endian": GGUFEndian.BIG}, "big-endian"),
])
def test_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(SourceError) as error:
        open_gguf(write(tmp_path / "m.gguf", **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    full = np.full((HIDDEN, HIDDEN), value, np.float16)
    path = write(tmp_path / "m.gguf", tensors={"blk.0.attn_q.weight": (full, Type.F16)})
    with pytest.raises(SourceError, match=r"tensor blk.0.attn_q.weight has values that are infinite or not a number"):
        open_gguf(path).tensors["model.layers.0.self_attn.q_proj.weight"].read(0, 1)
    raw = random_tensor(Type.Q4_K, HIDDEN, HIDDEN)
    raw[:, :2] = np.array([value], dtype=np.float16).view(np.uint8)
    path = write(tmp_path / "k.gguf", tensors={"blk.0.attn_q.weight": (raw, Type.Q4_K)})
    for method in ("read", "grid"):
        with pytest.raises(SourceError, match="infinite"):
            getattr(open_gguf(path).tensors["model.layers.0.self_attn.q_proj.weight"], method)(0, 4)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    tensor = open_gguf(path).tensors["model.layers.0.mlp.up_proj.weight"]
    path.write_bytes(path.read_bytes()[:8192])
    with pytest.raises(SourceError, match="has changed while it was being converted"):
        tensor.read(0, HIDDEN)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        tensor.read(0, HIDDEN)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(keys: list[bytes] | int, infos: list[bytes] | int = 0, body: bytes = b"", version: int = 3) -> bytes:
    key_list, info_list = ([] if isinstance(part, int) else part for part in (keys, infos))
    counts = [part if isinstance(part, int) else len(part) for part in (infos, keys)]
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(key_list) + b"".join(info_list)
    return head + b"\0" * (-len(head) % 32) + body


U32 = struct.pack("<I", 1)
F32 = int(Type.F32)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is not a GGUF file"),
    (b"GG", "is not a GGUF file"),
    (b"PK\x03\x04" + b"\0" * 64, "is not a GGUF file"),
    (b"GGUF", "the version goes past the end of the file (at byte 4)"),
    (gguf(0, version=1), "is GGUF version 1"),
    (gguf(0, version=4), "is GGUF version 4"),
    (gguf(0, version=0x03000000), "big-endian"),
    (gguf(1 << 60), "keys, more than 65536 (at byte 16)"),
    (gguf(0, 1 << 60), "tensors, more than 65536 (at byte 8)"),
    (gguf(60_000), "goes past the end of the file"),
    (gguf([struct.pack("<Q", 1 << 63)]), "a key is 9223372036854775808 bytes long"),
    (gguf([key("a", 8, struct.pack("<Q", 1 << 20))]), "the value of 'a' goes past the end"),
    (gguf([key("a", 8, struct.pack("<Q", 2) + b"\xff\xff")]), "the value of 'a' is not UTF-8"),
    (gguf([key("a", 99, U32)]), "'a' is of unknown type 99"),
    (gguf([key("a", 9, struct.pack("<IQ", 99, 1))]), "array of unknown type 99"),
    (gguf([key("a", 9, struct.pack("<IQ", 4, 1 << 60))]), "more than 4194304 array elements"),
    (gguf([key("a", 9, struct.pack("<IQ", 8, 1 << 60))]), "more than 4194304 array elements"),
    (gguf([key("a", 9, struct.pack("<IQ", 4, 1 << 20))]), "the array 'a' goes past the end"),
    (gguf([key("a", 9, struct.pack("<IQ", 9, 1) * 5000)]), "'a' is an array of arrays"),
    (gguf([key("a", 4, U32), key("a", 4, U32)]), "'a' is there twice"),
    (gguf([key("general.alignment", 4, struct.pack("<I", 24))]), "general.alignment is 24"),
    (gguf([key("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment is 0"),
    (gguf([key("general.alignment", 8, text("x"))]), "general.alignment is 'x'"),
    (gguf([], [info("t", (1,) * 5, F32, 0)]), "'t' has 5 dimensions"),
    (gguf([], [info("t", (), F32, 0)]), "'t' has 0 dimensions"),
    (gguf([], [info("t", (0, 4), F32, 0)]), "impossible shape [4, 0]"),
    (gguf([], [info("t", (33,), int(Type.Q8_0), 0)]), "impossible shape [33]"),
    (gguf([], [info("t", (8,), 1234, 0)]), "'t' is of unknown type 1234"),
    (gguf([], [info("t", (1 << 62, 1 << 62), F32, 0)], b"\0" * 64), "it is cut off or damaged"),
    (gguf([], [info("t", (8,), F32, 64)], b"\0" * 64), "it is cut off or damaged"),
    (gguf([], [info("t", (8,), F32, (1 << 64) - 32)], b"\0" * 64), "it is cut off or damaged"),
    (gguf([], [info("t", (8,), F32, 4)], b"\0" * 64), "not a multiple of 32"),
    (gguf([], [info("t", (16,), F32, 0), info("u", (8,), F32, 32)], b"\0" * 64), "'u' overlaps 't'"),
    (gguf([], [info("t", (8,), F32, 0), info("t", (8,), F32, 32)], b"\0" * 64), "'t' is there twice"),
    (gguf([], [info("t", (8,), F32, 0)], b"\0" * 32), "token_embd.weight is missing"),
])
def test_hostile(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError) as error:
        open_gguf(path)
    assert message in str(error.value)


def test_text_of_all_strings_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([key(f"k{n}", 8, text("x" * 100)) for n in range(10)]))
    assert len(read_header(path).metadata) == 10
    monkeypatch.setattr(gguf_header, "MAX_TEXT", 500)
    with pytest.raises(SourceError, match="more than 500 bytes of text"):
        read_header(path)


def test_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(SourceError, match="there is no such file"):
            open_gguf(path)


def use(path: Path) -> None:
    """Opens the model and reads a little of everything; SourceError is the only error allowed."""
    try:
        source = open_gguf(path)
        for tensor in source.tensors.values():
            tensor.read(0, 1)
            tensor.grid(0, 1)
    except SourceError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_byte_flips(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tiny.read_bytes())
    end = min(info.offset for info in read_header(tiny).tensors.values())
    flips = st.tuples(st.integers(0, end - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, min_size=1, max_size=4)):
        content[position] = value
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    use(path)


def test_truncation_anywhere(tiny: Path, tmp_path: Path) -> None:
    content, path = tiny.read_bytes(), tmp_path / "short.gguf"
    end = min(info.offset for info in read_header(tiny).tensors.values())
    for size in itertools.chain(range(0, end, 7), range(end, len(content), len(content) // 20)):
        path.write_bytes(content[:size])
        with pytest.raises(SourceError):
            open_gguf(path)


def test_smollm2(smollm2_gguf: Path) -> None:
    source = open_gguf(smollm2_gguf)
    assert (source.config.num_hidden_layers, source.config.vocab_size) == (30, 49152)
    tensor = source.tensors["model.layers.29.mlp.down_proj.weight"]
    grid = tensor.grid(0, 64)
    assert grid is not None
    scale, minimum = np.repeat(grid.scale, 32, axis=1), np.repeat(grid.minimum, 32, axis=1)
    q = np.round((tensor.read(0, 64) + minimum) / np.where(scale > 0, scale, 1))
    np.testing.assert_array_equal(q * scale - minimum, tensor.read(0, 64))


@pytest.mark.reference
def test_qwen(qwen_gguf: Path) -> None:
    source = open_gguf(qwen_gguf)
    config = source.config
    assert (config.architecture, config.num_hidden_layers, config.vocab_size) == ("qwen2", 28, 151936)
    assert {tensor.type_name for tensor in source.tensors.values()} == {"F32", "Q4_K", "Q6_K"}
    assert not config.tie_word_embeddings
