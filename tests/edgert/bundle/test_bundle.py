"""Bundles: what is written comes back, and whatever docs/bundle-format.md does not allow is refused."""

import contextlib
import json
import random
import struct
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import make_engine
from tiny_model import change_header, header_of, whole_groups, with_header, write_bundle, write_model

from edgert.bundle import Bundle, Neurons
from edgert.bundle.contents import contents, table
from edgert.bundle.header import ALIGNMENT, GROUP_CHECKSUMS, MAX_HEADER_BYTES, PREFIX_BYTES
from edgert.bundle.reader import Units
from edgert.converters.convert import convert
from edgert.converters.presets import Preset
from edgert.converters.quantizer import packed, packed_rows
from edgert.engine.session import Session
from edgert.errors import BundleError, EdgertError
from edgert.kernels.formats import FORMATS, unpack
from edgert.kernels.groups import group_layout
from edgert.kernels.neuron_rows import ROW_FORMATS, neuron_units
from edgert.models.families import FAMILIES
from edgert.models.tensors import Role

Values = dict[str, Any]
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tied.edge")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two layers in 8 bits, with biases, and with an embedding that is not the output head."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "untied.edge", "q8", model_type="qwen2",
                        num_hidden_layers=2, tie_word_embeddings=False)


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as error:
        Bundle(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 400
    return message.removeprefix(f"{path}: ")


def test_round_trip(tied: Path, untied: Path) -> None:
    for path in (tied, untied):
        with Bundle(path) as bundle:
            assert bundle.header.to_json() == json.dumps(header_of(path), separators=(",", ":")).encode()
            assert bundle.verify() == []
            assert bundle.read_section("chat_template") == b"{{ messages }}"
            assert json.loads(bundle.read_section("tokenizer"))["model"]["type"] == "BPE"
            assert path.stat().st_size == max(s.offset + s.length for s in bundle.header.sections.values())


def test_tensors_come_back(tmp_path: Path) -> None:
    """In float32 exactly: the resident ones, the head, and gate, up and down out of their groups."""
    from safetensors.numpy import load_file
    path = write_bundle(tmp_path / "m.edge", "f32", tie_word_embeddings=False)
    source, form = load_file(tmp_path / "m.model" / "model.safetensors"), FORMATS["f32"]
    with Bundle(path) as bundle:
        for name, t in bundle.header.tensors.items():
            raw = np.frombuffer(bundle.read_section(t.section)[t.offset:t.offset + t.length], np.uint8)
            if t.format == "vector":
                np.testing.assert_array_equal(raw.view("<f4")[:t.rows], source[name])
                assert not raw.view("<f4")[t.rows:].any() and t.length % 128 == 0
            else:
                values = unpack(form, raw.reshape(-1, form.tile_bytes(t.columns)))
                np.testing.assert_array_equal(values[:t.rows, :t.columns], source[name])
        groups = whole_groups(bundle, 0)
    two, prefix = 2 * form.tile_bytes(32), "model.layers.0.mlp."
    for part, at in (("gate", 0), ("up", two)):
        values = unpack(form, groups[:, at:at + two].reshape(4, -1))
        np.testing.assert_array_equal(values[:40], source[f"{prefix}{part}_proj.weight"])
    down = groups[:, 2 * two:2 * two + 2 * form.block_bytes].reshape(2, 2, -1).transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_array_equal(unpack(form, down)[:32, :40], source[f"{prefix}down_proj.weight"])


@pytest.mark.parametrize(("gate_up", "down"), [("q4", "q6"), ("q6", "q8"), ("q8", "f32"), ("f16", "q4")])
def test_planes_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate_up: str, down: str) -> None:
    """Base and detail of a group together are what was quantized, also where only one of its formats is split."""
    from safetensors.numpy import load_file
    monkeypatch.setattr(Preset, "formats", lambda self, source: {
        spec.name: down if spec.role is Role.DOWN else gate_up for spec in source.config.tensors() if spec.is_matrix})
    folder = write_model(tmp_path / "m", num_hidden_layers=2, hidden_size=48)
    convert(str(folder), tmp_path / "m.edge", calibrate=False)
    source, wide, tall = load_file(folder / "model.safetensors"), FORMATS[gate_up], FORMATS[down]
    with Bundle(tmp_path / "m.edge") as bundle:
        assert bundle.verify() == []
        layout = group_layout(48, wide, tall)
        assert bundle.header.neurons[1] == Neurons(
            "layers.1.neurons", "layers.1.details", 2, layout.base.length, layout.detail.length, gate_up, down)
        groups = whole_groups(bundle, 1)
        headers = np.empty((3, 0), np.uint8)
        if tensor := bundle.header.tensors.get("model.layers.1.mlp.down_proj.headers"):
            raw = bundle.read_section(tensor.section)[tensor.offset:tensor.offset + tensor.length]
            headers = np.frombuffer(raw, np.uint8).reshape(3, -1)
    two, prefix = 2 * wide.tile_bytes(48), "model.layers.1.mlp."
    for part, at in (("gate", 0), ("up", two)):
        tiles = groups[:, at:at + two].reshape(4, -1)
        expected = packed(wide, source[f"{prefix}{part}_proj.weight"])
        assert np.array_equal(tiles[:3], expected) and not tiles[3].any()
    blocks = groups[:, layout.whole.down:].reshape(2, 3, -1).transpose(1, 0, 2).reshape(3, -1)
    assert np.array_equal(np.concatenate([headers, blocks], 1), packed(tall, source[f"{prefix}down_proj.weight"]))


@pytest.mark.parametrize(("up", "down"), [("q4", "q6"), ("f16", "q4"), ("f32", "f32")])
@pytest.mark.parametrize("kind", [{"model_type": "opt"}, {"hidden_act": "relu"}], ids=repr)
def test_neurons_of_a_sparse_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, str], up: str,
                                   down: str) -> None:
    """Rows of up and columns of down, neuron by neuron; what decides, biases and positions stand with the norms."""
    from safetensors.numpy import load_file
    monkeypatch.setattr(Preset, "formats", lambda self, source: {
        spec.name: down if spec.role is Role.DOWN else up for spec in source.config.tensors() if spec.is_matrix})
    folder = write_model(tmp_path / "m", num_hidden_layers=2, hidden_size=48, intermediate_size=500, **kind)
    convert(str(folder), tmp_path / "m.edge", calibrate=False)
    source, wide = load_file(folder / "model.safetensors"), FORMATS[up]
    gated = "hidden_act" in kind
    forms = ROW_FORMATS[up], "q8" if down == "q4" else ROW_FORMATS[down]  # 48 columns fill no whole blocks
    units = neuron_units(48, *forms, gated=gated)
    prefix, deciding, rows, columns = (("model.layers.1.mlp.", "gate_proj", "up_proj", "down_proj") if gated else
                                       ("model.decoder.layers.1.", "fc1", "fc1", "fc2"))
    with Bundle(tmp_path / "m.edge") as bundle:
        assert bundle.verify() == []
        n = bundle.header.neurons[1]
        assert n == Neurons("layers.1.neurons", None, units.count(500), units.unit_bytes, 0, forms[not gated], forms[1])
        assert bundle.header.activity == [[10000 * (16 - part) // 16 for part in range(16)]] * 2
        raw = np.frombuffer(bundle.read_section(n.section), np.uint8).reshape(n.groups, -1)
        found = {}
        for name, tensor in bundle.header.tensors.items():
            if tensor.section == "resident":
                data = bundle.read_section(tensor.section)[tensor.offset:tensor.offset + tensor.length]
                found[name] = np.frombuffer(data, np.uint8)
        streamable = [layout.name for layout in bundle.header.streamable()]
        assert streamable[-3:] == [f"{prefix}{deciding}.weight", "layers.1.neurons", "head"]
    assert not raw[:, units.neurons * units.neuron_bytes:].any()
    neurons = raw[:, :units.neurons * units.neuron_bytes].reshape(-1, units.neuron_bytes)
    assert not neurons[500:].any()
    if gated:
        assert np.array_equal(neurons[:500, :units.up_bytes], packed_rows(forms[0], source[f"{prefix}{rows}.weight"]))
    of_down = np.ascontiguousarray(source[f"{prefix}{columns}.weight"].T)
    assert np.array_equal(neurons[:500, units.up_bytes:], packed_rows(forms[1], of_down))
    tiles = found[f"{prefix}{deciding}.weight"].reshape(32, -1)
    assert np.array_equal(tiles, packed(wide, source[f"{prefix}{deciding}.weight"]))
    if not gated:
        for part, size in (("fc1", 500), ("fc2", 48)):
            vector = found[f"{prefix}{part}.bias"].view("<f4")
            assert np.array_equal(vector[:size], source[f"{prefix}{part}.bias"]) and not vector[size:].any()
        positions = "model.decoder.embed_positions.weight"
        assert positions not in streamable
        assert np.array_equal(unpack(wide, found[positions].reshape(5, -1)),
                              unpack(wide, packed(wide, source[positions])))


def test_the_activation_is_silu_where_nothing_is_said(tmp_path: Path) -> None:
    """So bundles from when there was no other are as good as before."""
    path = write_bundle(tmp_path / "m.edge")
    assert "hidden_act" not in header_of(path)["config"]
    with Bundle(change_header(path, tmp_path / "a", put("config", "hidden_act", value="silu"))) as bundle:
        assert bundle.header.config.hidden_act == "silu"
    sparse = write_bundle(tmp_path / "relu.edge", hidden_act="relu")
    with Bundle(change_header(sparse, tmp_path / "b", put("config", "hidden_act", value="relu2"))) as bundle:
        assert bundle.header.config.hidden_act == "relu2"


def test_there_is_no_window_where_nothing_is_said(tmp_path: Path) -> None:
    """The same of Qwen2's windows, which were not read once."""
    path = write_bundle(tmp_path / "m.edge", model_type="qwen2")
    assert not {"sliding_window", "full_layers"} & header_of(path)["config"].keys()
    with Bundle(path) as bundle:
        assert bundle.header.config.window(0) is None
    with Bundle(change_header(path, tmp_path / "a", put("config", "sliding_window", value=8))) as bundle:
        assert bundle.header.config.window(0) == 8


@pytest.mark.parametrize("activity", [None, [], [[0] * 15], [[0] * 16] * 2, [[10001] * 16], [[0.5] * 16], [["1"] * 16]])
def test_the_activity_of_a_sparse_model(tmp_path: Path, activity: Any) -> None:
    """Its header says how often neurons are active, and nothing else is taken for that."""
    path = write_bundle(tmp_path / "m.edge", hidden_act="relu")
    forged = change_header(path, tmp_path / "b", put("quantization", "activity", value=activity))
    with pytest.raises(BundleError, match="the activity of neurons"):
        Bundle(forged)


def test_units(untied: Path, tmp_path: Path) -> None:
    """What is read piece by piece, in the order of its checksums and in the order of use."""
    with Bundle(untied) as bundle:
        groups = [f"layers.{layer}.{part}" for layer in range(2) for part in ("neurons", "details")]
        assert list(bundle.units) == [*groups, "embedding", "head"]
        for name in groups:
            length, units = bundle.header.sections[name].length, bundle.units[name]
            assert (units.count, units.length, units.unit_bytes) == (2, length, length // 2)
        used = [layout.name for layout in bundle.header.streamable()]
        assert used[4:6] == groups[:2] and used[10:] == [*groups[2:], "head"]
        assert bundle.header.sections[GROUP_CHECKSUMS].length == 8 * (4 * 2 + 2)
    with Bundle(write_bundle(tmp_path / "m.edge", "f16")) as bundle:
        assert list(bundle.units) == ["layers.0.neurons", "head"]
        assert (bundle.header.neurons[0].details, bundle.header.neurons[0].detail_bytes) == (None, 0)


@pytest.mark.parametrize("preset", ["q4", "q6", "q8", "f16"])
def test_contents(tmp_path: Path, preset: str) -> None:
    """All sections' bytes, and every weight once."""
    with Bundle(write_bundle(tmp_path / "m.edge", preset, num_hidden_layers=3)) as bundle:
        header = bundle.header
    kinds = {kind.name: kind for kind in contents(header)}
    parts = [kind for name, kind in kinds.items() if name.startswith("feed-forward")]
    assert {kind.weights for kind in parts} == {3 * 3 * 32 * 40}
    headers = sum(t.length for t in header.tensors.values() if t.format == "headers")
    assert sum(kind.bytes for kind in parts) == headers + sum(
        s.length for name, s in header.sections.items() if name.startswith("layers."))
    if preset == "f16":
        assert [kind.name for kind in parts] == ["feed-forward"]
    else:
        assert kinds["feed-forward, details"].bytes == 3 * header.sections["layers.0.details"].length or preset == "q4"
        assert {kind.counted for kind in parts} == {True, False}
    weights = sum(np.prod(spec.shape) for spec in header.config.tensors())
    assert table(list(kinds.values()), 1000).splitlines()[-1].split() == [
        "file", f"{weights:,}", "1,000", f"{8000 / weights:.2f}"]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty; make one with"),
    (b"GGUF" + bytes(100), "is a GGUF file, not a bundle; make one with: edgert convert"),
    (bytes(10_000), "is not an edgert bundle, or its conversion was interrupted"),
    (b"EDGERT\n" + bytes(100), "is not an edgert bundle"),  # a copy as text
    (b"EDGERT\r\n", "is not an edgert bundle"),
    (b"\x80\x04" + bytes(100), "is not an edgert bundle"),
    (b"EDGERT\r\n" + struct.pack("<IIQQ", 3, 7, 10, 0) + bytes(10), "has 0x7 at offset 12, where zeros belong"),
    (b"EDGERT\r\n" + struct.pack("<IIQQ", 3, 0, 11, 0) + bytes(10), "claims 11 bytes at offset 32, more than there"),
    (b"EDGERT\r\n" + struct.pack("<IIQQ", 3, 0, (1 << 64) - 1, 0), "claims 18446744073709551615 bytes"),
    (b"EDGERT\r\n" + struct.pack("<IIQQ", 3, 0, 10, 0) + bytes(10), "does not match its checksum"),
])
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.edge").write_bytes(content)
    assert message in refused(tmp_path / "m.edge")


@pytest.mark.parametrize(("version", "advice"), [
    (1, "convert the model again"), (2, "convert the model again"), (4, "update edgert or convert the model again")])
def test_other_versions(tmp_path: Path, version: int, advice: str) -> None:
    (tmp_path / "m.edge").write_bytes(b"EDGERT\r\n" + struct.pack("<IIQQ", version, 0, 10, 0) + bytes(10))
    assert refused(tmp_path / "m.edge") == f"is a bundle of version {version}, this edgert reads version 3; {advice}"


def test_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.edge") == "cannot be opened: no such file or directory"
    assert refused(tmp_path) == "cannot be opened: is a directory"


def test_a_header_too_long(tied: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.edge"
    path.write_bytes(with_header(tied.read_bytes(), b" " * (MAX_HEADER_BYTES + 1)))
    assert "more than there are or may be" in refused(path)


@pytest.mark.parametrize("header", [
    b"", b"{", b"\xff\xfe{}", "{}".encode("utf-16"), b"\xef\xbb\xbf{}", b"[" * 200_000, b'{"a":' * 100_000,
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1,"a":1}', b'{"a":' + b"9" * 5000 + b"}", '{"ä":1}'.encode(), b"{} {}",
], ids=range(13))
def test_not_json(tied: Path, tmp_path: Path, header: bytes) -> None:
    (tmp_path / "m.edge").write_bytes(with_header(tied.read_bytes(), header))
    assert "the header is not JSON" in refused(tmp_path / "m.edge")


def put(*names: str | int, value: Any) -> Callable[[Values], None]:
    """Set header[names[0]][names[1]]…"""
    def change(values: Values) -> None:
        place: Any = values
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = value
    return change


def drop(*names: str) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        place = values
        for name in names[:-1]:
            place = place[name]
        del place[names[-1]]
    return change


def overlap(values: Values) -> None:
    values["sections"]["head"]["offset"] = values["sections"]["resident"]["offset"]


def overlap_tensors(values: Values) -> None:
    values["tensors"][NORM]["offset"] = values["tensors"]["model.layers.0.input_layernorm.weight"]["offset"]


def long_details(values: Values) -> None:
    values["sections"]["layers.0.details"]["length"] += 64


STRANGE = (None, "4096", 4096.5, -1, True, [], {}, 10 ** 30, 1 << 63, 1e308)
"""What stands where a whole number should."""
NUMBERS = [("sections", "head", "offset"), ("sections", "head", "length"), ("tensors", NORM, "offset"),
           ("tensors", NORM, "rows"), ("tensors", EMBEDDING, "columns"), ("neurons", 0, "groups"),
           ("neurons", 0, "group_bytes"), ("neurons", 0, "detail_bytes"), ("config", "hidden_size"),
           ("config", "num_hidden_layers"), ("config", "vocab_size"), ("config", "max_position_embeddings"),
           ("generation", "eos_token_ids", 0)]
CASES: list[tuple[Callable[[Values], object], str]] = [
    *((drop(name), "is not an object of") for name in ("architecture", "neurons", "provenance")),
    (put("more", value=1), "is not an object of"),
    (put("architecture", value="gpt"), f"unknown architecture 'gpt', known: {', '.join(FAMILIES)}"),
    (put("architecture", value=["llama"]), "unknown architecture"),
    *((put(name, value=[]), f"{name} is not an object") for name in ("config", "sections", "tensors", "provenance")),
    (put("neurons", value={}), "0 neuron sections"), (put("neurons", value=None), "not valid"),
    (put("neurons", value=[7]), "not an object of section, details, groups, group_bytes, detail_bytes, gate_up, down"),
    (put("neurons", value=[]), "0 neuron sections for 1 layers"),
    (put("sections", "head", value=7), "section 'head' is not an object of offset, length, checksum"),
    (put("sections", "head", "more", value=7), "section 'head' is not an object of"),
    (put("sections", "a\nb\x1b[2J", value=7), "is not an object of"),
    (drop("sections", "head", "checksum"), "section 'head' is not an object of"),
    (put("tensors", NORM, "more", value=7), "is not an object of section, offset, format, rows, columns"),
    (put("sections", "more", value={"offset": 0, "length": 0, "checksum": "0" * 16}), "section 'more' is not known"),
    *((drop("sections", name), f"section '{name}' is missing")
      for name in ("tokenizer", "resident", "head", "group_checksums", "layers.0.neurons", "layers.0.details")),
    (put("sections", "head", "offset", value=4097), "misaligned or overlaps"),
    (put("sections", "tokenizer", "offset", value=0), "section 'tokenizer' at offset 0 is misaligned or overlaps"),
    (overlap, "misaligned or overlaps"), (overlap_tensors, "misaligned or overlaps another"),
    (put("sections", "group_checksums", "length", value=1 << 40), "past the end of the file"),
    (put("sections", "group_checksums", "length", value=8), "the sections end at"),
    *((put("sections", "head", "checksum", value=v), "the checksum of section 'head'") for v in
      ("", "0" * 15, "0" * 17, "g" * 16, "A" * 16, "+" + "0" * 15, "0x" + "0" * 14, "1_" * 8, "１" * 16, 7, None, [])),
    (drop("tensors", NORM), f"tensor '{NORM}' is missing"),
    (drop("tensors", "model.layers.0.mlp.down_proj.headers"), "down_proj.headers' is missing"),
    (put("tensors", "more", value={"section": "head", "offset": 0, "format": "q4", "rows": 1, "columns": 1}),
     "tensor 'more' is not known"),
    (put("tensors", NORM, "section", value="head"), "is in section 'head', expected 'resident'"),
    (put("tensors", EMBEDDING, "section", value="tokenizer"), "expected 'head'"),
    (put("tensors", NORM, "section", value=[]), "is in section"),
    (put("tensors", NORM, "format", value="headers"), "has format 'headers'"),
    (put("tensors", NORM, "format", value="f32"), "has format 'f32'"),
    (put("tensors", EMBEDDING, "format", value="vector"), "has format 'vector'"),
    *((put("tensors", EMBEDDING, "format", value=v), "has format") for v in ("q5", "", None, 4, ["q4"])),
    (put("tensors", EMBEDDING, "format", value="f32"), "reaches past the end of section 'head'"),
    (put("tensors", NORM, "rows", value=33), "has shape 33 x 1"),
    (put("tensors", NORM, "offset", value=1), "misaligned or overlaps"),
    (put("tensors", NORM, "offset", value=1 << 40), "reaches past the end of section 'resident'"),
    (put("neurons", 0, "section", value="resident"), "the neurons of layer 0 are in section 'resident'"),
    (put("neurons", 0, "details", value=None), "section 'layers.0.details' is not known"),
    *((put("neurons", 0, "details", value=v), "the details of layer 0 are in section")
      for v in ("resident", "layers.0.neurons", "", 0, [], {})),
    (put("neurons", 0, "detail_bytes", value=0), "bytes and 0 of details"),
    (put("neurons", 0, "detail_bytes", value=64), "bytes and 64 of details"),
    (put("neurons", 0, "gate_up", value="q6"), "layer 0 has 2 groups of"),
    (long_details, "section 'layers.0.details' is not 2 groups of"),
    *((put("neurons", 0, "down", value=v), "the neurons of layer 0 have formats") for v in ("q5", "vector", None)),
    (put("neurons", 0, "down", value="f32"), "layer 0 has 2 groups of"),
    (put("neurons", 0, "groups", value=3), "layer 0 has 3 groups of"),
    (put("neurons", 0, "groups", value=2.0), "a number of groups is 2.0"),
    (put("config", "num_hidden_layers", value=2), "1 neuron sections for 2 layers"),
    (put("config", "hidden_size", value=64), "layer 0 has 2 groups of"),
    (put("config", "vocab_size", value=21), "has shape 20 x 32"),
    (put("config", "num_attention_heads", value=3), "has shape 32 x 32"),
    (put("config", "head_dim", value=15), "expected an even number"),
    (put("config", "rms_norm_eps", value=-1e-5), "rms_norm_eps is -1e-05"),
    (put("config", "hidden_act", value="gelu_new"),
     "activation 'gelu_new' is not known; known: silu, relu, relu2, gelu_tanh, gelu"),
    (put("config", "rope_scaling", value={"factor": 0.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 8}), "rope scaling's factor is 0.0"),
    (put("config", "rope_frequency_factors", value=[1.0]), "rope_frequency_factors has 1 numbers, expected 8"),
    (put("config", "tie_word_embeddings", value=False), "section 'embedding' is missing"),
    (put("config", "more", value=1), "config is not an object of hidden_size"),
    (drop("config", "rope_scaling"), "config is not an object of"),
    (drop("generation", "bos_token_id"), "generation is not an object of"),
    (put("generation", "more", value=1), "generation is not an object of"),
    (put("generation", "bos_token_id", value=20), "bos_token_id is 20, past the vocabulary of 20"),
    (put("generation", "bos_token_id", value="0"), "expected a whole number"),
    (put("generation", "eos_token_ids", value=1), "eos_token_ids is not a list"),
    (put("generation", "add_bos_token", value=1), "add_bos_token not true or false"),
]


@pytest.mark.parametrize(("change", "message"), CASES, ids=range(len(CASES)))
def test_header_refused(tied: Path, tmp_path: Path, change: Callable[[Values], object], message: str) -> None:
    found = refused(change_header(tied, tmp_path / "m.edge", change))
    assert found.startswith("the header is not valid: ") and found.endswith("; convert the model again")
    assert message in found


@pytest.mark.parametrize("names", NUMBERS, ids=lambda names: ".".join(map(str, names)))
def test_strange_numbers(tied: Path, tmp_path: Path, names: tuple[str | int, ...]) -> None:
    for value in STRANGE:
        refused(change_header(tied, tmp_path / "m.edge", put(*names, value=value)))


def test_claims_cost_no_memory(tied: Path, tmp_path: Path) -> None:
    """Nothing is as large as a number in the header says before that number is known to fit the file."""
    paths = [change_header(tied, tmp_path / f"{i}.edge", put(*names, value=1 << 24))
             for i, names in enumerate(NUMBERS) if names[0] == "config"]
    tracemalloc.start()
    for path in paths:
        with contextlib.suppress(BundleError):
            Bundle(path).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_truncated_at_every_border(tied: Path, untied: Path, tmp_path: Path) -> None:
    for path in (tied, untied):
        content, values = path.read_bytes(), header_of(path)
        borders = {0, 7, 8, 31, 32, 33, len(content) - 1}
        for s in values["sections"].values():
            borders |= {s["offset"] - 1, s["offset"], s["offset"] + 1, s["offset"] + s["length"] - 1}
        for length in sorted(borders - {-1}):
            (tmp_path / "m.edge").write_bytes(content[:length])
            refused(tmp_path / "m.edge")
        (tmp_path / "m.edge").write_bytes(content + b"\0")
        assert "the sections end at" in refused(tmp_path / "m.edge")


def test_verify_names_what_is_wrong(untied: Path, tmp_path: Path) -> None:
    """One byte flipped in each section, and in each group's planes: its name and its offset, and nothing else's."""
    content, values, path = untied.read_bytes(), header_of(untied), tmp_path / "m.edge"

    def problems(at: int) -> list[str]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
        with Bundle(path) as bundle:
            return bundle.verify()

    for name, s in values["sections"].items():
        for at in {s["offset"], s["offset"] + s["length"] // 2, s["offset"] + s["length"] - 1}:
            found = problems(at)
            assert found[0].startswith(f"{path}: section '{name}' at offset {s['offset']} does not match its checksum")
            assert len(found) == (2 if name.startswith("layers.") or name in ("head", "embedding") else 1)
    for n in values["neurons"]:
        for section, size in ((n["section"], n["group_bytes"]), (n["details"], n["detail_bytes"])):
            for group in range(n["groups"]):
                start = values["sections"][section]["offset"] + group * size
                for at in (start, start + size - 1):
                    assert f"part {group} of '{section}' at offset {start} does not" in problems(at)[1]


def run(path: Path) -> tuple[bytes, ...]:
    """Open, check, load, compute; all that was read."""
    with Bundle(path) as bundle:
        if problems := bundle.verify():
            raise BundleError(problems[0])
        engine = make_engine(bundle, threads=1, chunk=4, cache_type="f32")
        try:
            engine.forward(Session(bundle.header.config, 4, "f32"), [1, 2, 3])
        finally:
            engine.close()
        return bundle.header.to_json(), *(bundle.read_section(name) for name in sorted(bundle.header.sections))


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_damage_anywhere(tied: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Bytes changed or cut off: a BundleError, or, where nothing is kept, the same data."""
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "damaged.edge"
    content = bytearray(tied.read_bytes())
    edges = [0, PREFIX_BYTES, *(s["offset"] for s in header_of(tied)["sections"].values())]
    for _ in range(rng.randint(1, 3)):
        at = rng.choice((rng.randrange(len(content)), rng.randrange(2 * ALIGNMENT), rng.choice(edges)))
        content[at] ^= rng.randint(1, 255)
    path.write_bytes(content[:rng.choice((None, None, rng.randrange(len(content))))])
    try:
        assert run(path) == run(tied)
    except BundleError as error:
        assert "\n" not in str(error)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_forged_header(tied: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """JSON changed at random and signed again: refused, or a bundle that runs."""
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "forged.edge"
    header = bytearray(json.dumps(header_of(tied), separators=(",", ":")).encode())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(header))
        digits = [i for i, c in enumerate(header) if chr(c).isdigit()]
        if rng.random() < 0.6:  # another number, mostly still of JSON
            header[rng.choice(digits)] = ord(rng.choice("0123456789-.e"))
        elif rng.random() < 0.5:
            header[at] = rng.choice(b'{}[]",:0truefalsn\\ \x00\xff')
        else:
            del header[at:at + rng.randint(1, 40)]
    path.write_bytes(with_header(tied.read_bytes(), bytes(header)))
    try:
        run(path)
    except EdgertError as error:
        assert "\n" not in str(error)


def test_units_that_are_checked_together() -> None:
    """As one by one: of several that are damaged the first is named, by its number and its place in the file."""
    data = np.random.default_rng(3).integers(0, 256, 250, np.uint8)
    places = [slice(0, 100), slice(100, 200), slice(200, 250)]
    checksums = [xxhash.xxh3_64_intdigest(data[at]) for at in places]
    units = Units(Path("m.edge"), "head", 4096, 450, 100, array("Q", [0, 0, *checksums]))
    units.check_all(2, iter(places), memoryview(data))
    for damaged in ((1,), (2,), (1, 2)):
        wrong = data.copy()
        for number in damaged:
            wrong[places[number]][-1] ^= 1
        with pytest.raises(BundleError, match=f"part {2 + damaged[0]} of 'head'.* {4096 + 100 * (2 + damaged[0])}"):
            units.check_all(2, iter(places), memoryview(wrong))
