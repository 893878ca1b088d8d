"""Tiny models in Hugging Face's layout, written with the safetensors library; and folders made to harm."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_model import write_model
from tokenizers import Tokenizer, decoders, models, processors

from edgert.converters.open_source import open_source
from edgert.converters.safetensors_source import open_safetensors
from edgert.errors import SourceError
from edgert.models.llama import Config

CONFIG = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 12, "max_position_embeddings": 64,
          "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1}
DTYPES = ("F32", "F16", "BF16")


def values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, bytes]:
    """Values that the type can hold exactly, as float32, and their bytes in a file."""
    floats = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if dtype == "F32":
        return floats, floats.tobytes()
    if dtype == "F16":
        return floats.astype(np.float16).astype(np.float32), floats.astype(np.float16).tobytes()
    upper = (floats.view(np.uint32) >> 16).astype(np.uint16)
    return (upper.astype(np.uint32) << 16).view(np.float32), upper.tobytes()


def raw(entries: dict, body: bytes = b"", length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def save(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> None:
    """By hand: the library's NumPy side has no BF16."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, shape in shapes.items():
        content = values(dtype, shape)[1]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    path.write_bytes(raw(entries, body))


def tokenizer(**added: int) -> Tokenizer:
    ids = {"<s>": 0, "</s>": 1, "<|im_end|>": 2, "a": 3, "b": 4, **added}
    made = Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.decoder = decoders.ByteLevel()
    return made


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in config.tensors()}


def write(folder: Path, *, dtype: str = "F32", config: dict | None = None, tokenizer_config: dict | None = None,
          shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    merged = {**CONFIG, **(config or {})}
    (folder / "config.json").write_text(json.dumps(merged))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config or {}))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    shapes = shapes_of(Config.from_hf(merged))
    if shards == 1:
        save(folder / "model.safetensors", shapes, dtype)
        return folder
    weight_map = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(shapes)}
    for file in set(weight_map.values()):
        save(folder / file, {name: shape for name, shape in shapes.items() if weight_map[name] == file}, dtype)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_read(tmp_path: Path, dtype: str, shards: int) -> None:
    source = open_safetensors(write(tmp_path / "tiny", dtype=dtype, shards=shards))
    assert source.config.rope_pairing == "half"
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == shapes_of(source.config)
    for tensor in source.tensors.values():
        expected = values(dtype, tensor.shape)[0]
        np.testing.assert_array_equal(tensor.read(0, tensor.shape[0]), expected)
        np.testing.assert_array_equal(tensor.read(3, 7), expected[3:7])
        assert tensor.read(0, 1).dtype == np.float32
        assert tensor.grid(0, 1) is None
        assert tensor.type_name == dtype
    assert source.provenance["source"] == "tiny"
    config = (tmp_path / "tiny" / "config.json").read_bytes()
    assert source.provenance["files"]["config.json"] == hashlib.sha256(config).hexdigest()
    assert len(source.provenance["files"]) == 2 + shards


def test_what_the_library_writes(tmp_path: Path) -> None:
    content = {name: values("F16", shape)[0].astype(np.float16)
               for name, shape in shapes_of(Config.from_hf(CONFIG)).items()}
    save_file(content, write(tmp_path) / "model.safetensors", metadata={"format": "pt"})
    for name, tensor in open_safetensors(tmp_path).tensors.items():
        np.testing.assert_array_equal(tensor.read(0, tensor.shape[0]), content[name])


def test_tied(tmp_path: Path) -> None:
    folder = write(tmp_path, config={"tie_word_embeddings": True})
    assert "lm_head.weight" not in open_safetensors(folder).tensors
    save(folder / "model.safetensors", shapes_of(Config.from_hf(CONFIG)))  # with an lm_head.weight
    assert "lm_head.weight" not in open_safetensors(folder).tensors


def test_inv_freq_of_old_exports_is_left_out(tmp_path: Path) -> None:
    shapes = shapes_of(Config.from_hf(CONFIG))
    save(write(tmp_path) / "model.safetensors", {**shapes, "model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})
    assert set(open_safetensors(tmp_path).tensors) == set(shapes)


@pytest.mark.parametrize(("config", "generation", "tokenizer_config", "expected"), [
    ({}, None, {}, (0, [1], False)),
    ({}, {"eos_token_id": [2, 1]}, {}, (0, [2, 1], False)),
    ({}, None, {"eos_token": "<|im_end|>", "add_bos_token": True}, (0, [1, 2], True)),
    ({"bos_token_id": None, "eos_token_id": None}, None,
     {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}, (0, [1], False)),
    ({"bos_token_id": None, "eos_token_id": 99}, None, {"add_bos_token": True}, (None, [], False)),
])
def test_generation(tmp_path: Path, config: dict, generation: dict | None, tokenizer_config: dict,
                    expected: tuple) -> None:
    folder = write(tmp_path, config=config, tokenizer_config=tokenizer_config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    found = open_safetensors(folder).generation
    assert (found["bos_token_id"], found["eos_token_ids"], found["add_bos_token"]) == expected


def test_bos_by_post_processor(tmp_path: Path) -> None:
    """As in Llama 3, whose tokenizer_config.json does not say it."""
    folder, built = write(tmp_path), tokenizer()
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    built.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    (folder / "tokenizer.json").write_text(built.to_str())
    assert open_safetensors(folder).generation["add_bos_token"]


def test_chat_template(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert open_safetensors(folder).chat_template is None
    write(tmp_path, tokenizer_config={"chat_template": "plain"})
    assert open_safetensors(folder).chat_template == "plain"
    write(tmp_path, tokenizer_config={"chat_template": [{"name": "tool_use", "template": "tools"},
                                                        {"name": "default", "template": "named"}]})
    assert open_safetensors(folder).chat_template == "named"
    (folder / "chat_template.jinja").write_text("file")
    assert open_safetensors(folder).chat_template == "file"


def refused(folder: Path) -> str:
    with pytest.raises(SourceError) as error:
        open_safetensors(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("config", "message"), [
    ({"model_type": "gpt_bigcode"}, "architecture 'gpt_bigcode' is not supported; supported: llama, "),
    ({"model_type": ["llama"]}, "is not supported"),
    ({"hidden_size": "16"}, "cannot be used"),
    ({"rope_scaling": "linear"}, "cannot be used"),
    ({"num_attention_heads": 0}, "cannot be used"),
    ({"num_hidden_layers": 1 << 24}, "claims 16777216 layers"),
    ({"num_hidden_layers": 3}, "is missing (and 8 more)"),
    ({"num_hidden_layers": 1}, "tensor model.layers.1.input_layernorm.weight is not one that architecture llama has"),
    ({"vocab_size": 13}, "has shape [12, 16], expected [13, 16]"),
    ({"quantization_config": {"bits": 4}}, "already quantized"),
])
def test_config_refused(tmp_path: Path, config: dict, message: str) -> None:
    (write(tmp_path) / "config.json").write_text(json.dumps({**CONFIG, **config}))
    assert message in refused(tmp_path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("config.json", "{", "is not JSON"),
    ("config.json", "[" * 100_000, "is not JSON"),
    ("config.json", "[]", "is not a JSON object"),
    ("config.json", "{}", "architecture None is not supported"),
    ("config.json", None, "config.json: there is no such file"),
    ("tokenizer.json", None, "tokenizer.json: there is no such file"),
    ("tokenizer.json", "{}", "is not a tokenizer"),
    ("tokenizer.json", Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).to_str(),
     "tokenizer.json: The model's tokenizer is neither byte-level BPE nor SentencePiece-style"),
    ("tokenizer.json", Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="?")).to_str(),
     "tokenizer.json: The model's tokenizer cannot be read: WordLevel error"),
    ("tokenizer.json", tokenizer(far=12).to_str(), "token ids up to 12, but the model has 12 embeddings"),
    ("tokenizer_config.json", '{"chat_template": 7}', "chat_template is not text"),
    ("model.safetensors", None, "has no model.safetensors"),
    ("model.safetensors.index.json", "{}", "has no weight_map"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "../secret.safetensors"}}', "not the name of a safetensors"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}', "not the name of a safetensors file"),
    ("model.safetensors.index.json", '{"weight_map": {"a": 7}}', "not the name of a safetensors file"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "b.safetensors: there is no such file"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "model.safetensors"}}', "tensor a is missing"),
])
def test_files_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = write(tmp_path) / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_tokenizers_from_before_tokenizer_json(tmp_path: Path, name: str) -> None:
    """SentencePiece's, and GPT-2's, which OPT has."""
    (write(tmp_path) / "tokenizer.json").rename(tmp_path / name)
    assert f"has a {name} but no tokenizer.json: make one with transformers' AutoTokenizer" in refused(tmp_path)


def test_pickles(tmp_path: Path) -> None:
    (write(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "is a pickle, and opening a pickle can run any code" in refused(tmp_path)
    with pytest.raises(SourceError, match="is a pickle"):
        open_source(str(tmp_path / "pytorch_model.bin"))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", np.nan))
    with pytest.raises(SourceError, match="infinite or not a number"):
        for tensor in open_safetensors(tmp_path).tensors.values():
            tensor.read(0, tensor.shape[0])


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("content", [
    b"",
    b"\0" * 8,
    raw({}, length=1 << 60),
    raw({}, length=99_000_000),
    raw({"a": entry(0, 16)}),
    raw({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24),
    raw({"a": entry(0, 16), "b": entry(0, 16)}, b"\0" * 16),
    raw({"a": entry(16, 0)}, b"\0" * 16),
    raw({"a": entry(0, 12)}, b"\0" * 12),
    raw({"a": entry(8, 24)}, b"\0" * 24),
    raw({"a": entry(0, 1 << 62, shape=(1 << 60,))}, b"\0" * 16),
    raw({"a": entry(0, 16, shape=(1 << 62, 1 << 62))}, b"\0" * 16),
    raw({"a": entry(0, 16, dtype="F99")}, b"\0" * 16),
    struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
    struct.pack("<Q", 9) + b"\xff" * 9,
], ids=range(15))
def test_hostile(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path) / "model.safetensors").write_bytes(content)
    assert "is not a whole safetensors file" in refused(tmp_path)


def test_other_element_types(tmp_path: Path) -> None:
    (write(tmp_path) / "model.safetensors").write_bytes(raw({"a": entry(0, 4, dtype="F8_E4M3")}, b"\0" * 4))
    assert "tensor a is of type F8_E4M3" in refused(tmp_path)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_byte_flips(tmp_path: Path, data: st.DataObject) -> None:
    path = write(tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), max_size=4)):
        content[position] = value
    path.write_bytes(content[:data.draw(st.sampled_from([len(content), len(content) // 2, end, 7]))])
    try:
        for tensor in open_safetensors(tmp_path).tensors.values():
            tensor.read(0, tensor.shape[0])
    except SourceError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.gguf", b"GGUF", "the version goes past the end"),
    ("a.bin", b"GGUF", "the version goes past the end"),
    ("a.pt", b"PK\x03\x04", "is a pickle"),
    ("weights", b"\x80\x04\x95", "is a pickle"),
    ("model.safetensors", b"\0" * 8, "give the folder that it is in"),
    ("a.gguf", b"<html>", "is not a model that edgert reads"),
    ("a.onnx", b"", "is not a whole ONNX model"),
])
def test_open_source_refuses(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / name))


def test_open_source(tmp_path: Path) -> None:
    assert open_source(str(write(tmp_path / "tiny"))).provenance["source"] == "tiny"
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(str(tmp_path / "absent"))


def test_the_text_part_of_a_mistral_that_sees_images_too(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", model_type="mistral3")
    both = write_model(tmp_path / "both", model_type="mistral3")
    text = json.loads((plain / "config.json").read_text())
    del text["tie_word_embeddings"]
    (both / "config.json").write_text(json.dumps({"model_type": "mistral3", "tie_word_embeddings": True,
                                                  "text_config": {**text, "model_type": "mistral"}}))
    weights = {"language_model." + name: values for name, values in load_file(plain / "model.safetensors").items()}
    save_file({**weights, "vision_tower.patch.weight": np.zeros((3, 3), np.float32)}, both / "model.safetensors")
    one, other = open_safetensors(plain), open_safetensors(both)
    assert one.config == other.config
    for spec in one.config.tensors():
        assert np.array_equal(*(source.tensors[spec.name].read(0, spec.shape[0]) for source in (one, other)))


@pytest.mark.parametrize(("change", "message"), [
    (lambda parts: parts.pop("model.layers.0.self_attn.k_layernorm.norms.1.weight"),
     "tensor model.layers.0.self_attn.k_layernorm.weight is missing"),
    (lambda parts: parts.update({"model.layers.0.self_attn.q_layernorm.norms.0.weight": np.ones(31, np.float32)}),
     r"q_layernorm.norms.0.weight has shape \[31\], expected \[32\]")])
def test_norms_of_heads(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    """StableLM 2 12B has them one by one."""
    shutil.copytree(Path(__file__).parents[1] / "golden" / "models" / "stablelm-heads", folder := tmp_path / "m")
    parts = load_file(folder / "model.safetensors")
    heads = [parts[f"model.layers.0.self_attn.q_layernorm.norms.{head}.weight"] for head in range(2)]
    found = open_safetensors(folder).tensors["model.layers.0.self_attn.q_layernorm.weight"]
    assert np.array_equal(found.read(0, 64), np.concatenate(heads)) and found.read(30, 34).tolist() == [
        *heads[0][30:], *heads[1][:2]]
    change(parts)
    save_file(parts, folder / "model.safetensors")
    with pytest.raises(SourceError, match=message):
        open_safetensors(folder)
