"""Tiny models that real exporters wrote to ONNX (golden/make_onnx.py): copies that are changed, and onnxruntime."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

ONNX = Path(__file__).parent / "golden" / "onnx"
NAMES = ("genai-llama-int4", "genai-qwen2-int4", "genai-qwen2-f32", "optimum-qwen2", "optimum-llama-q4", "torch-llama")
Change = Callable[[onnx.ModelProto], object]


def file_of(folder: Path) -> Path:
    """The ONNX file of one of these models."""
    return next(iter([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]))


def copy(name: str, folder: Path, change: Change = lambda model: None) -> Path:
    """A copy of one of these models, whose ModelProto `change` has changed in place; external data stays what it is."""
    shutil.copytree(ONNX / name, folder)
    path = file_of(folder)
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return folder


def attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    """Set a node's attribute."""
    kept = [of for of in node.attribute if of.name != name]
    node.ClearField("attribute")
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    """Those with this operator."""
    return [node for node in model.graph.node if node.op_type == kind]


def in_floats(model: onnx.ModelProto) -> None:
    """Have onnxruntime multiply by weights as they are: not round activations to 8 bits for it, as exporters allow."""
    for node in nodes(model, "MatMulNBits"):
        attribute(node, "accuracy_level", 1)


def logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """What onnxruntime computes after each of the tokens: float32 of shape (tokens, vocabulary)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file_of(folder), options, providers=["CPUExecutionProvider"])
    genai = folder / "genai_config.json"
    head = json.loads(genai.read_text())["model"]["decoder"]["head_size"] if genai.is_file() else 0
    given = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64),
             "position_ids": np.arange(len(tokens))[None], "use_cache_branch": np.array([False])}
    for value in session.get_inputs():
        if value.name not in given:
            _, heads, _, size = value.shape
            given[value.name] = np.zeros((1, heads, 0, size if isinstance(size, int) else head), np.float32)
    names = {value.name for value in session.get_inputs()}
    (found,) = session.run(["logits"], {name: value for name, value in given.items() if name in names})
    return np.asarray(found[0], np.float32)


def merged(model: onnx.ModelProto) -> None:
    """Two decoders in one, as optimum's decoder_model_merged.onnx: the nodes stand in the branches of an If."""
    graph = model.graph
    branches = []
    for name in ("then_branch", "else_branch"):
        branch = onnx.GraphProto(name=name)
        branch.node.extend(graph.node)
        branch.output.extend(graph.output)
        branches.append(onnx.helper.make_attribute(name, branch))
    chosen = onnx.helper.make_node("If", ["use_cache_branch"], [value.name for value in graph.output], "optimum::if")
    chosen.attribute.extend(branches)
    graph.ClearField("node")
    graph.node.append(chosen)
    graph.input.append(onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1]))
