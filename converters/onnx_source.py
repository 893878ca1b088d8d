"""Decoder models in ONNX, as Hugging Face's optimum, onnxruntime-genai's model builder and torch write it: a `Source`.

The weights are taken out of the graph by their modules' names; what the graph computes is taken to be what the family
does. Tokenizer and config.json are those of the folder, as beside safetensors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgert.errors import SourceError, UnsupportedError
from edgert.models.config import Config
from edgert.models.families import MODEL_TYPES
from edgert.models.tensors import Role, TensorSpec

from .hf_tokenizer import read_json, read_tokenizer
from .onnx_config import genai_config, genai_model, genai_values
from .onnx_file import read_model
from .onnx_graph import Graph, Use, tail
from .onnx_tensors import Blocks
from .reading import family_config, model_tensors
from .rows import Rows
from .source import Source, SourceTensor
from .source_file import Reading, SourceFile, hashes, unheard

_SUBFOLDER = "onnx"
"""Where repositories of several formats have their ONNX files."""
_PREFERRED = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx", "decoder_model.onnx",
              "model_fp16.onnx", "model_q4.onnx", "model_q4f16.onnx")
"""Of several ONNX files of a model: the most exact first, as quantizing then has the most to go by."""
_TEXTS = ("config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
          "chat_template.jinja")
_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Projections that exporters put together, and of what, from the first row on."""
_COMPARED = 4 << 20
"""Weights that are compared at once."""


def has_onnx(folder: Path) -> bool:
    """Whether there are ONNX files in a folder, and no safetensors, which are preferred."""
    return not any(folder.glob("*.safetensors*")) and bool(_candidates(folder))


def _candidates(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx")) or sorted((folder / _SUBFOLDER).glob("*.onnx"))


def open_onnx(path: str | Path, *, hashed: bool = True, reading: Reading = unheard) -> Source:
    """The model in an ONNX file, or in a folder of such, with config.json or genai_config.json and tokenizer.json.

    Reads the graph, the files once for their hashes (if `hashed`; `reading` is told how far that has come), and no
    tensor before it is asked for. Raises SourceError where something is missing or damaged, UnsupportedError for what
    edgert does not read.
    """
    path = Path(path)
    if path.is_dir():
        folder, path = path, _chosen(path)
    else:
        folder = path.parent
        if folder.name == _SUBFOLDER and not (folder / "tokenizer.json").is_file():
            folder = folder.parent
    weights = {path.name: SourceFile(path)}
    graph = Graph(read_model(path), path, weights)
    if "logits" not in graph.outputs:
        raise UnsupportedError(f"{path}: its graph has no output `logits`: this is not a language model that writes "
                               "text, but an encoder, or a part of a model")
    uses = list(graph.uses())
    files = {name: SourceFile(folder / name) for name in _TEXTS if (folder / name).is_file()}
    config, values = _config(folder, graph, uses)
    found, config = _found(uses, config, path)
    tensors = model_tensors(path, config, found, lambda spec: spec.name, by_head=True)
    tokenizer_json, generation, template = read_tokenizer(folder, values, config.vocab_size)
    named = {**weights, **{name: files[name] for name in sorted(files) if name.endswith("config.json")
                           or name == "tokenizer.json"}} if hashed else {}
    provenance = {"source": (Path(folder.resolve().name) / path.relative_to(folder)).as_posix(),
                  "files": hashes(dict(sorted(named.items())), reading), "type": "onnx"}
    return Source(config, tensors, tokenizer_json, generation, template, provenance,
                  (*weights.values(), *files.values()))


def _chosen(folder: Path) -> Path:
    """The ONNX file of a folder that is read. Raises SourceError."""
    genai = folder / "genai_config.json"
    if genai.is_file():
        name = genai_model(read_json(genai), genai)["decoder"].get("filename", "model.onnx")
        if not isinstance(name, str) or any(c in name for c in "/\\:\0") or not (folder / name).is_file():
            raise SourceError(f"{genai}: says that the model is in {name!r}, and there is no such file in this folder")
        return folder / name
    there = _candidates(folder)
    for name in _PREFERRED:
        if chosen := [path for path in there if path.name == name]:
            return chosen[0]
    if len(there) > 1:
        raise SourceError(f"{folder}: has several ONNX files ({', '.join(path.name for path in there)}): "
                          "name the one to convert")
    if not there:
        raise SourceError(f"{folder}: has no ONNX file")
    return there[0]


def _config(folder: Path, graph: Graph, uses: Iterable[Use]) -> tuple[Config, Mapping[str, Any]]:
    """Hyper-parameters, and what config.json has (of genai_config.json: the tokens). Raises SourceError."""
    path, genai = folder / "config.json", folder / "genai_config.json"
    if path.is_file():
        values = read_json(path)
        return family_config(path, values.get("model_type"), MODEL_TYPES, lambda family: family.from_hf(values)), values
    if genai.is_file():
        settings = read_json(genai)
        found = {name: use.tensor for use in reversed(list(uses)) for name in use.names[:1]}
        return genai_config(settings, genai, graph, found), genai_values(settings, genai)
    raise SourceError(f"{folder}: has neither a config.json nor a genai_config.json: put the config.json of the "
                      "original model into it")


def _found(uses: Iterable[Use], config: Config, path: Path) -> tuple[dict[str, SourceTensor], Config]:
    """The tensors by their canonical names, others by their own; and the config, tied as the graph is.

    Raises SourceError where there are two tensors for one, UnsupportedError where weights are of no known module.
    """
    specs = {tail(spec.name): spec for spec in replace(config, tie_word_embeddings=False).tensors()}
    fused = {tail(of.name): of for of in config.fused()}
    chosen: dict[str, Use] = {}
    unknown: dict[str, Use] = {}
    for use in uses:
        name = next((name for name in use.names if name in specs or name in fused or _parts(name, specs)), None)
        if name is None:
            if use.certain:
                unknown[use.of.name] = use
        elif (before := chosen.setdefault(name, use)).of is not use.of and before.graph == use.graph:
            raise SourceError(f"{path}: has two tensors for {name}, {before.of.name} and {use.of.name}: edgert reads "
                              "files with one decoder")
    whole = {fused[name].name: use.tensor for name, use in chosen.items() if name in fused}
    found: dict[str, SourceTensor] = {}
    for name, use in chosen.items():
        if name in fused:
            continue
        first = 0
        for part in _parts(name, specs) or [name]:
            rows = specs[part].shape[0]
            found[part] = use.tensor if part == name else Rows(use.tensor, specs[part].shape, first, rows, rows)
            first += rows
        if name not in specs and first != use.tensor.shape[0]:
            raise SourceError(f"{path}: tensor {use.of.name} has {use.tensor.shape[0]} rows, expected {first}")
    parts = {tail(part.name) for of in fused.values() if of.name in whole for part in of.parts}
    if unknown and not found.keys() | parts >= specs.keys():
        name, use = next(iter(unknown.items()))
        raise UnsupportedError(f"{path}: nothing says what tensor {name} is for (its node is of {use.names[0]}): this "
                               f"is not how architecture {config.architecture} is exported by optimum or "
                               "onnxruntime-genai")
    for name, spec in specs.items():
        if isinstance(blocks := found.get(name), Blocks):
            found[name] = _without_filling(blocks, spec.shape)
    config = replace(config, tie_word_embeddings=_tied(chosen, found, config, specs))
    if config.tie_word_embeddings:
        found = {name: tensor for name, tensor in found.items() if specs[name].role is not Role.HEAD}
    return whole | {specs[name].name: tensor for name, tensor in found.items()} | {
        name: use.tensor for name, use in unknown.items()}, config


def _parts(name: str, specs: Mapping[str, TensorSpec]) -> list[str]:
    """The tensors that a packed one is made of, where the family has those; otherwise none."""
    module, _, kind = name.rpartition(".")
    before, _, last = module.rpartition(".")
    parts = [f"{before}.{part}.{kind}" for part in _PACKED.get(last, ())]
    return parts if name not in specs and all(part in specs for part in parts) else []


def _without_filling(blocks: Blocks, shape: tuple[int, ...]) -> Blocks:
    """A matrix in blocks whose rows the exporter has filled up to whole ones, with the columns that it should have."""
    rows, columns = blocks.shape
    filled = -(-shape[1] // blocks.block_size) * blocks.block_size
    return replace(blocks, shape=(rows, shape[1]), padded=True) if columns == filled and not blocks.padded else blocks


def _tied(chosen: Mapping[str, Use], found: Mapping[str, SourceTensor], config: Config,
          specs: Mapping[str, TensorSpec]) -> bool:
    """Whether the output head is the embedding, as the graph has it: it may be one constant, or a copy that stands in
    another order. Where there is no head, it is as the config says."""
    of = {spec.role: name for name, spec in specs.items() if spec.role in (Role.EMBEDDING, Role.HEAD)}
    embedding, head = of[Role.EMBEDDING], of[Role.HEAD]
    if head not in found or embedding not in found:
        return config.tie_word_embeddings
    if chosen[head].of is chosen[embedding].of:
        return True
    return config.tie_word_embeddings and _same(found[embedding], found[head])


def _same(one: SourceTensor, other: SourceTensor) -> bool:
    if one.shape != other.shape or one.type_name != other.type_name:
        return False
    rows, columns = one.shape
    step = max(_COMPARED // columns, 1)
    return all(np.array_equal(one.read(start, min(start + step, rows)), other.read(start, min(start + step, rows)))
               for start in range(0, rows, step))
