"""ONNX models of real exporters: what is read of them, which file is, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import ONNX, attribute, copy, file_of, nodes
from onnxruntime.quantization import quantize_dynamic
from tiny_model import write_model

from edgert.cli import cli
from edgert.converters import onnx_tensors
from edgert.converters.open_source import open_source
from edgert.converters.quantizer import packed
from edgert.converters.rows import Rows
from edgert.converters.source import Source
from edgert.errors import SourceError, UnsupportedError
from edgert.kernels.formats import FORMATS, unpack

GENAI, OPTIMUM = "genai-llama-int4", "optimum-qwen2"
INT4 = ("genai-llama-int4", "genai-qwen2-int4", "optimum-llama-q4")


def refused(source: Path, *words: str, kind: type[Exception] = SourceError) -> None:
    with pytest.raises(kind) as caught:
        open_source(str(source))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def everything(source: Source) -> None:
    for tensor in source.tensors.values():
        tensor.read(0, tensor.shape[0])
        tensor.grid(0, tensor.shape[0])


# What is read.

def dequantized(name: str) -> dict[str, np.ndarray]:
    """All 4- and 8-bit matrices of a model by the name of their codes, weight by weight as onnxruntime defines them."""
    model = onnx.load(file_of(ONNX / name))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in nodes(model, "MatMulNBits"):
        values = {of.name: helper.get_attribute_value(of) for of in node.attribute}
        rows, columns, bits, size = values["N"], values["K"], values["bits"], values["block_size"]
        blocks = -(-columns // size)
        codes = constants[node.input[1]].reshape(rows, blocks, -1)
        scales = constants[node.input[2]].reshape(rows, blocks)
        zeros = constants[node.input[3]].reshape(rows, -1) if len(node.input) > 3 else None
        matrix = np.empty((rows, columns), np.float32)
        for row, column in np.ndindex(rows, columns):
            block, at = divmod(column, size)
            q = codes[row, block, at * bits // 8] >> (at * bits % 8) & (1 << bits) - 1
            zero = 1 << bits - 1 if zeros is None else \
                zeros[row, block * bits // 8] >> (block * bits % 8) & (1 << bits) - 1
            matrix[row, column] = np.float32(int(q) - int(zero)) * scales[row, block]
        found[node.input[1]] = matrix
    return found


def tensors_of(source: Source, expected: dict[str, np.ndarray]) -> list[tuple[onnx_tensors.Blocks, np.ndarray]]:
    """The quantized matrices of a source, packed ones once, with what they should be."""
    blocks = {}
    for tensor in source.tensors.values():
        whole = tensor.whole if isinstance(tensor, Rows) else tensor
        if isinstance(whole, onnx_tensors.Blocks):
            blocks[whole.codes.name] = whole
    assert set(blocks) == set(expected)
    return [(blocks[name], expected[name]) for name in blocks]


@pytest.mark.parametrize("name", INT4)
def test_blocks_are_what_they_say(name: str) -> None:
    pairs = tensors_of(open_source(str(ONNX / name)), dequantized(name))
    assert {tensor.type_name for tensor, _ in pairs} == {"INT4", *(["INT8"] if name == "genai-qwen2-int4" else [])}
    for tensor, expected in pairs:
        rows = len(expected)
        assert (tensor.read(0, rows) == expected).all()
        assert (tensor.read(3, 7) == expected[3:7]).all()
        assert tensor.read(5, 5).shape == (0, expected.shape[1])


@pytest.mark.parametrize("name", INT4)
def test_grids_are_kept(name: str) -> None:
    """Every q is what it was, and weights deviate by what scales and minimums do, which a bundle has in 255 steps of
    their row's largest: half a step of each, at most 0.6 % of the row's largest weight together (0.54 % was seen).
    Where a row's zero points are 8 and its scales above 0, minimums are 8 scales, rounded alike: zeros remain zeros."""
    for tensor, expected in tensors_of(open_source(str(ONNX / name)), dequantized(name)):
        rows, columns = expected.shape
        grid = tensor.grid(0, rows)
        if tensor.bits == 8:
            assert grid is None
            continue
        assert grid is not None and (grid.scale >= 0).all() and (grid.minimum >= 0).all()
        scale, minimum = (np.repeat(of, 32, 1)[:, :columns] for of in (grid.scale, grid.minimum))
        q = (expected + minimum) / scale
        assert np.abs(q - np.rint(q)).max() < 1e-4 and q.min() > -0.1 and q.max() < 15.1
        made = unpack(FORMATS["q4"], packed(FORMATS["q4"], expected, grid))[:rows, :columns]
        steps = 1.01 * (15 * grid.scale.max(1) + grid.minimum.max(1)) / 255 / 2
        deviation = np.abs(made - expected)
        assert (deviation <= steps[:, None]).all()
        assert (deviation <= 0.006 * np.abs(expected).max(1, keepdims=True)).all()
        symmetric = (np.abs(grid.minimum - 8 * grid.scale) < 1e-6).all(1)
        assert (made[symmetric] == 0)[expected[symmetric] == 0].all()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_halves(tmp_path: Path, kind: int) -> None:
    """The same model with weights of 16 bits, in the ONNX file itself: in bytes, and vectors as old exporters have
    them, one number each."""
    source = copy("genai-qwen2-f32", tmp_path / "model")
    model = onnx.load(file_of(source))
    expected = {name: tensor.read(0, tensor.shape[0]) for name, tensor in open_source(str(source)).tensors.items()}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        raw = values.ndim == 2
        content = values.tobytes() if raw else values.tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, values.shape, content, raw=raw))
    onnx.save(model, file_of(source))
    (source / "model.onnx.data").unlink()
    found = open_source(str(source))
    assert {tensor.type_name for tensor in found.tensors.values()} == {
        "F16" if kind == TensorProto.FLOAT16 else "BF16"}
    assert found.config.rope_theta == 1000.0  # type: ignore[attr-defined]
    for name, tensor in found.tensors.items():
        exact = expected[name].astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
        assert (tensor.read(0, tensor.shape[0]) == exact).all()


@pytest.mark.parametrize("kind", ["Transpose", "Gemm", "Gemm of the transposed"])
def test_orders(tmp_path: Path, kind: str) -> None:
    """Matrices whose rows are outputs, turned by a node or an attribute, and such as are multiplied by Gemm."""
    def change(model: onnx.ModelProto) -> None:
        for node in [node for node in nodes(model, "MatMul") if "_proj" in node.name]:
            tensor = constant(model, node.input[1])
            if kind != "Gemm":
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor).T),
                                                        tensor.name))
            if kind == "Transpose":
                model.graph.node.append(helper.make_node("Transpose", [tensor.name], [f"{tensor.name}_t"], perm=[1, 0]))
                node.input[1] = f"{tensor.name}_t"
            else:
                node.op_type = "Gemm"
                attribute(node, "transB", int(kind != "Gemm"))

    source = copy(OPTIMUM, tmp_path / "model", change)
    expected = open_source(str(ONNX / OPTIMUM)).tensors
    for name, tensor in open_source(str(source)).tensors.items():
        assert (tensor.read(0, tensor.shape[0]) == expected[name].read(0, tensor.shape[0])).all(), name


def test_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed matrix that is read in bands of few rows is the same one."""
    whole = open_source(str(ONNX / OPTIMUM)).tensors
    monkeypatch.setattr(onnx_tensors, "_BAND_BYTES", 1000)
    for name, tensor in open_source(str(ONNX / OPTIMUM)).tensors.items():
        rows = tensor.shape[0]
        expected = whole[name].read(0, rows)
        parts = [tensor.read(start, min(start + 13, rows)) for start in range(0, rows, 13)]
        assert (np.concatenate(parts) == expected).all()


def test_what_genai_config_leaves_out() -> None:
    """Epsilon, activation and rotary frequencies come from the graph, which has Llama 3's scaling in a table."""
    config = open_source(str(ONNX / GENAI)).config
    low, high, original, factor = 1.0, 4.0, 32, 8.0  # LLAMA3_ROPE in make_models.py
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    wavelength = 2 * np.pi / plain
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    assert np.allclose(config.rope_frequencies(), (1 - smooth) * plain / factor + smooth * plain, rtol=2e-7, atol=0)
    assert (config.norm_epsilon, config.hidden_act, config.tie_word_embeddings) == (1e-5, "silu", True)
    assert (config.hidden_size, config.intermediate_size, config.head_dim, config.vocab_size) == (48, 76, 16, 263)
    assert config.max_position_embeddings == 128


def test_heads_are_tied_as_the_graph_has_them(tmp_path: Path) -> None:
    """The embedding and a transposed copy of it are one, unless they differ."""
    assert open_source(str(ONNX / OPTIMUM)).config.tie_word_embeddings

    def change(model: onnx.ModelProto) -> None:
        head = nodes(model, "MatMul")[-1].input[1]
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == head)
        values = numpy_helper.to_array(tensor).copy()
        values[7, 200] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, head))

    source = open_source(str(copy(OPTIMUM, tmp_path / "model", change)))
    assert not source.config.tie_word_embeddings
    assert source.tensors["lm_head.weight"].read(200, 201)[0, 7] != source.tensors["model.embed_tokens.weight"].read(
        200, 201)[0, 7]


def test_tokens_and_template() -> None:
    for name in (GENAI, OPTIMUM):
        source = open_source(str(ONNX / name))
        assert source.generation["eos_token_ids"] == [0, 2] and source.generation["bos_token_id"] == 0
        assert source.chat_template is not None and "<|im_start|>" in source.chat_template
        assert source.provenance["type"] == "onnx" and source.provenance["source"] == f"{name}/model.onnx"
        assert "model.onnx" in source.provenance["files"]


# Which file is read.

def test_safetensors_come_first(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    shutil.copyfile(file_of(ONNX / OPTIMUM), source / "model.onnx")
    assert open_source(str(source)).provenance["type"] == "safetensors"


def test_a_file_or_its_folder(tmp_path: Path) -> None:
    for name in (OPTIMUM, "optimum-llama-q4"):
        source = copy(name, tmp_path / name)
        config = open_source(str(source)).config
        assert open_source(str(file_of(source))).config == config


def test_of_several_files_the_most_exact(tmp_path: Path) -> None:
    source = copy("optimum-llama-q4", tmp_path / "model")
    there = file_of(source)
    shutil.copyfile(there, there.with_name("model_int8.onnx"))
    assert open_source(str(source)).provenance["source"] == "model/onnx/model_q4.onnx"
    shutil.copyfile(file_of(ONNX / OPTIMUM), there.with_name("model.onnx"))
    refused(source, "model.onnx", "tensor")  # which is a Qwen2, but config.json is not
    there.with_name("model.onnx").unlink()
    there.rename(there.with_name("a.onnx"))
    refused(source, "several ONNX files (a.onnx, model_int8.onnx)", "name the one")


def test_the_file_that_genai_config_names(tmp_path: Path) -> None:
    source = copy(GENAI, tmp_path / "model")
    file_of(source).rename(source / "other.onnx")
    refused(source, "genai_config.json", "'model.onnx'")
    config = json.loads((source / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "other.onnx"
    (source / "genai_config.json").write_text(json.dumps(config))
    assert open_source(str(source)).provenance["source"] == "model/other.onnx"


# What is refused.

def test_no_onnx_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(ONNX / OPTIMUM, "pip install 'edgert[onnx]'")


@pytest.mark.parametrize("content", [b"", b"\0", b"GGU", b"not an ONNX file at all", b"\x3a\xff\xff\xff\xff\x7f",
                                     b"\x3a\x00", b"\xff" * 40, bytes(5000)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, "not a whole ONNX model")


@pytest.mark.parametrize("name", [OPTIMUM, GENAI])
def test_truncated(tmp_path: Path, name: str) -> None:
    source = copy(name, tmp_path / "model")
    content = file_of(source).read_bytes()
    for length in range(0, len(content), len(content) // 40):
        file_of(source).write_bytes(content[:length])
        with pytest.raises(SourceError):
            everything(open_source(str(source)))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_byte_flips(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is changed in a graph: it is read, or refused in a sentence."""
    source = tmp_path / "model"
    if not source.exists():
        copy(GENAI, source)
    content = bytearray((ONNX / GENAI / "model.onnx").read_bytes())
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, min_size=1, max_size=4)):
        content[position] = value
    (source / "model.onnx").write_bytes(content)
    try:
        everything(open_source(str(source)))
    except SourceError as error:
        assert "\n" not in str(error)


def test_data_beside(tmp_path: Path) -> None:
    source = copy(GENAI, tmp_path / "model")
    content = (source / "model.onnx.data").read_bytes()
    (source / "model.onnx.data").write_bytes(content[:-1])
    refused(source, "model.onnx.data", "shorter than model.onnx says")
    (source / "model.onnx.data").unlink()
    refused(source, "model.onnx.data", "no such file", "fetch it too")


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd", "a/b", "..", ""])
def test_data_elsewhere(tmp_path: Path, location: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].external_data[0].value = location

    refused(copy(GENAI, tmp_path / "model", change), repr(location), "not the name of a file in this folder")


def constant(model: onnx.ModelProto, end: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(end))


def first(model: onnx.ModelProto) -> onnx.NodeProto:
    return nodes(model, "MatMulNBits")[0]


def other_operator(model: onnx.ModelProto) -> None:
    first(model).op_type = "MatMulBnb4"


def other_domain(model: onnx.ModelProto) -> None:
    nodes(model, "SkipSimplifiedLayerNormalization")[0].domain = "com.example"


def small_blocks(model: onnx.ModelProto) -> None:
    attribute(first(model), "block_size", 16)


def three_bits(model: onnx.ModelProto) -> None:
    attribute(first(model), "bits", 3)


def other_size(model: onnx.ModelProto) -> None:
    attribute(first(model), "K", 80)


def negative_size(model: onnx.ModelProto) -> None:
    attribute(first(model), "N", -112)


def other_order(model: onnx.ModelProto) -> None:
    first(model).input.extend(["", constant(model, "cos_cache").name])


def for_a_gpu(model: onnx.ModelProto) -> None:
    attribute(first(model), "weight_prepacked", 1)


def no_scales(model: onnx.ModelProto) -> None:
    first(model).input[2] = "missing"


def no_logits(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "last_hidden_state"


def soft_cap(model: onnx.ModelProto) -> None:
    attribute(nodes(model, "GroupQueryAttention")[1], "softcap", 30.0)


def window(model: onnx.ModelProto) -> None:
    attribute(nodes(model, "GroupQueryAttention")[1], "local_window_size", 64)


def other_activation(model: onnx.ModelProto) -> None:
    for node in nodes(model, "Sigmoid"):
        node.op_type = "Tanh"


def unnamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = node.name.replace("/model/layers.", "/blk.")
    for tensor in model.graph.initializer:
        new = f"constant_{tensor.name.replace('.', '_')}"
        for node in model.graph.node:
            node.input[:] = [new if name == tensor.name else name for name in node.input]
        tensor.name = new


def two_decoders(model: onnx.ModelProto) -> None:
    other = onnx.NodeProto()
    other.CopyFrom(first(model))
    other.input[1], other.output[0] = constant(model, "layers.1.attn.qkv_proj.MatMul.weight_Q4").name, "unused"
    model.graph.node.append(other)


def missing_layer(model: onnx.ModelProto) -> None:
    gone = [node for node in model.graph.node if node.name == "/model/layers.1/mlp/up_proj/MatMul_Q4"]
    model.graph.node.remove(gone[0])


def further_bias(model: onnx.ModelProto) -> None:
    product = next(node for node in model.graph.node if node.name.startswith("/model/layers.1/mlp/down_proj/MatMul"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(48, np.float32), "anonymous"))
    model.graph.node.append(helper.make_node("Add", [product.output[0], "anonymous"], ["sum"], "/odd/Add"))


def adapter(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((48, 4), np.float32), "onnx::MatMul_1"))
    model.graph.node.append(helper.make_node("MatMul", [first(model).input[0], "onnx::MatMul_1"], ["low"],
                                             "/model/layers.0/attn/q_proj/lora_A/MatMul"))


def packed_rows(model: onnx.ModelProto) -> None:
    """A query head less than genai_config.json says."""
    attribute(first(model), "N", 64)
    for end, size in (("weight_Q4", [64, 2, 16]), ("weight_scales", [64, 2])):
        tensor = constant(model, f"layers.0.attn.qkv_proj.MatMul.{end}")
        del tensor.dims[:]
        tensor.dims.extend(size)
        length = int(np.prod(size)) * (1 if end == "weight_Q4" else 4)
        next(entry for entry in tensor.external_data if entry.key == "length").value = str(length)


@pytest.mark.parametrize(("change", "words"), [
    (other_operator, ["operator MatMulBnb4 of com.microsoft"]),
    (other_domain, ["of com.example", "does not know"]),
    (small_blocks, ["blocks of 16 weights of 4 bits", "blocks of 32 and multiples"]),
    (three_bits, ["blocks of 32 weights of 3 bits"]),
    (other_size, ["qkv_proj", "wrong size for 80 rows of 80"]),
    (negative_size, ["wrong size"]),
    (other_order, ["g_idx"]),
    (for_a_gpu, ["one kind of GPU"]),
    (no_scales, ["no weights in blocks with scales"]),
    (no_logits, ["no output `logits`", "encoder"]),
    (soft_cap, ["soft cap", "config.json of the original model"]),
    (window, ["sliding window"]),
    (other_activation, ["'Tanh' is not known"]),
    (unnamed, ["genai_config.json", "does not say intermediate_size"]),
    (two_decoders, ["two tensors for layers.0.attn.qkv_proj.weight"]),
    (missing_layer, ["model.layers.1.mlp.up_proj.weight is missing"]),
    (further_bias, ["anonymous is not one that architecture llama has"]),
    (adapter, ["onnx::MatMul_1 is not one that architecture llama has"]),
    (packed_rows, ["has 64 rows, expected 80"]),
])
def test_other_graphs(tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: list[str]) -> None:
    refused(copy(GENAI, tmp_path / "model", change), "model", *words)


def test_weights_of_no_known_module(tmp_path: Path) -> None:
    source = copy(OPTIMUM, tmp_path / "model", unnamed)
    refused(source, "nothing says what tensor", "not how architecture qwen2 is exported", kind=UnsupportedError)


def test_not_a_number(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        constant(model, "model.norm.weight").raw_data = np.full(32, np.nan, np.float32).tobytes()

    source = open_source(str(copy(OPTIMUM, tmp_path / "model", change)))
    with pytest.raises(SourceError, match=r"model\.norm\.weight has values that are infinite or not a number"):
        everything(source)


def test_other_shapes(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        constant(model, "model.norm.weight").dims[0] = 33

    refused(copy(OPTIMUM, tmp_path / "model", change), "model.norm.weight has 128 bytes", "takes 132")


def test_dynamic_quantization(tmp_path: Path) -> None:
    """Models that onnxruntime has quantized to 8 bits, activations too: as transformers.js's model_quantized.onnx."""
    source = copy(OPTIMUM, tmp_path / "model")
    quantize_dynamic(file_of(source), source / "model_quantized.onnx")
    refused(source / "model_quantized.onnx", "quantized to 8 bits with", "MatMulNBits", kind=UnsupportedError)


def test_an_encoder(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "last_hidden_state"

    refused(copy(OPTIMUM, tmp_path / "model", change), "no output `logits`", kind=UnsupportedError)
    source = copy(OPTIMUM, tmp_path / "bert")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused(source, "architecture 'bert' is not supported", kind=UnsupportedError)


def test_missing_texts(tmp_path: Path) -> None:
    source = copy(OPTIMUM, tmp_path / "model")
    (source / "tokenizer.json").unlink()
    refused(source, "tokenizer.json")
    (source / "config.json").unlink()
    refused(source, "neither a config.json nor a genai_config.json", "original model")
    source = copy(GENAI, tmp_path / "genai")
    config = json.loads((source / "genai_config.json").read_text())
    del config["model"]["decoder"]["num_attention_heads"]
    (source / "genai_config.json").write_text(json.dumps(config))
    refused(source, "genai_config.json", "num_attention_heads", "put the config.json of the original model")
    config["model"]["decoder"] |= {"num_attention_heads": 3, "sliding_window": {"window_size": 64, "layers": []}}
    (source / "genai_config.json").write_text(json.dumps(config))
    open_source(str(source))
    config["model"]["decoder"]["sliding_window"] = {"window_size": 64}
    (source / "genai_config.json").write_text(json.dumps(config))
    refused(source, "genai_config.json", "sliding window")
    (source / "genai_config.json").write_text("{}")
    refused(source, "genai_config.json: has no model with a decoder")


# Converting.

def test_the_commands(tmp_path: Path) -> None:
    def edgert(*arguments: object) -> str:
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    bundle = tmp_path / "model.edge"
    assert "MB in" in edgert("convert", ONNX / GENAI, bundle)
    assert "genai-llama-int4/model.onnx" in edgert("inspect", bundle)
    assert "whole" in edgert("verify", bundle)
    assert "smallest budget" in edgert("plan", bundle, "--memory", "300M")
    assert "ONNX" in edgert("convert", "--help")


SCRIPT = """
import re, sys
from pathlib import Path
from edgert.converters import onnx_tensors, packing
from edgert.converters.convert import convert
def peak():  # ru_maxrss would begin with the parent's
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
small, out, *large = sys.argv[1:]
packing._VALUES_AT_ONCE, onnx_tensors._BAND_BYTES = 1 << 18, 1 << 20
convert(small, out, "f32")
before = peak()
for model in large:
    convert(model, out, "f32")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory(tmp_path: Path) -> None:
    """Growth while a model of 50 MB is converted, a megabyte at a time, with its weights in a file beside and in the
    ONNX file. A layer's down projection is held whole (6.3 MB)."""
    folder = write_model(tmp_path / "model", hidden_size=768, intermediate_size=2048, num_hidden_layers=2,
                         num_attention_heads=48, num_key_value_heads=48)
    made, named = [], []
    for name, tensor in open_source(str(folder)).tensors.items():
        values, gathered = tensor.read(0, tensor.shape[0]), "embed" in name
        turned = np.ascontiguousarray(values.T) if values.ndim == 2 and not gathered else values
        made.append(numpy_helper.from_array(turned, f"onnx::Constant_{len(made)}"))
        kind = "Gather" if gathered else "MatMul" if values.ndim == 2 else "SimplifiedLayerNormalization"
        inputs = [made[-1].name, "x"] if gathered else ["x", made[-1].name]
        path = name.removesuffix("weight").replace(".", "/")
        named.append(helper.make_node(kind, inputs, [f"y{len(made)}"], f"/{path}{kind}"))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(named, "model", [], [logits], made)
    (folder / "model.safetensors").unlink()
    shutil.copytree(folder, tmp_path / "beside")
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    onnx.save(helper.make_model(graph), tmp_path / "beside" / "model.onnx", save_as_external_data=True,
              location="model.onnx.data")
    assert (folder / "model.onnx").stat().st_size > 50e6
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(ONNX / OPTIMUM), str(tmp_path / "m.edge"), str(folder),
                           str(tmp_path / "beside")], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 6.3e6 + 12e6
