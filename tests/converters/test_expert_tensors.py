"""Matrices of experts, however a safetensors file has them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import write_model

from edgert.converters.expert_tensors import with_experts
from edgert.converters.safetensors_source import open_safetensors
from edgert.errors import SourceError

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def altered(tmp_path: Path, name: str, change: object) -> Path:
    """A golden model with its tensors changed in place."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors")
    return folder


def fuse(tensors: dict[str, np.ndarray]) -> None:
    """All experts of a layer in one tensor, gate and up too, as transformers 5 has them in memory."""
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name in [name for name in tensors if ".experts." in name]:
        prefix, _, rest = name.partition(".experts.")
        number, part, _ = rest.split(".")
        found.setdefault(prefix, {}).setdefault(int(number), {})[part] = tensors.pop(name)
    for prefix, experts in found.items():
        own = [experts[number] for number in range(len(experts))]
        gate, up, down = ("w1", "w3", "w2") if "w1" in own[0] else ("gate_proj", "up_proj", "down_proj")
        tensors[f"{prefix}.experts.gate_up_proj"] = np.stack([np.concatenate([of[gate], of[up]]) for of in own])
        tensors[f"{prefix}.experts.down_proj"] = np.stack([of[down] for of in own])


@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_each_for_itself_or_all_together(tmp_path: Path, name: str) -> None:
    each, together = open_safetensors(GOLDEN / name), open_safetensors(altered(tmp_path, name, fuse))
    experts = [name for name in each.tensors if ".experts." in name]
    assert len(experts) == 6 and each.tensors.keys() == together.tensors.keys()
    random = np.random.default_rng(0)
    for tensor in experts:
        one, other = each.tensors[tensor], together.tensors[tensor]
        assert one.shape == other.shape and one.grid(0, 3) is None and other.grid(0, 3) is None
        cuts = [(0, one.shape[0]), (5, 5), *(sorted(random.integers(0, one.shape[0], 2).tolist()) for _ in range(9))]
        for start, stop in cuts:
            rows = one.read(start, stop)
            assert rows.shape == (stop - start, one.shape[1])
            assert np.array_equal(rows, other.read(start, stop))


def test_an_expert_that_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    prefix = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    with pytest.raises(SourceError, match=r"layers.1.mlp.experts.down_proj.weight is missing"):
        open_safetensors(altered(tmp_path, "mixtral", lambda tensors: tensors.pop(prefix)))
    shutil.rmtree(tmp_path / "mixtral")
    with pytest.raises(SourceError, match=r"layers.1.mlp.experts.down_proj.weight is missing"):
        open_safetensors(altered(tmp_path, "mixtral", lambda tensors: tensors.update(
            {prefix: tensors[prefix][:, :-1].copy()})))


def test_no_experts_at_all(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    found = open_safetensors(folder).tensors
    assert with_experts(found) == dict(found)


@pytest.mark.parametrize(("changes", "what"), [
    ({"num_experts_per_tok": 9}, "9 experts for each token are more than the 7"),
    ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
    ({"num_local_experts": 5000, "num_experts": 5000}, "5000 experts are more than 1024")])
def test_hyper_parameters_that_cannot_be(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "olmoe", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SourceError, match=what):
        open_safetensors(folder)
