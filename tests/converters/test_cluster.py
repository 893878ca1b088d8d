"""Layers converted by two Ray workers on this machine: the same bytes, also where a worker is killed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import write_model

from edgert.converters import convert as module
from edgert.converters.convert import convert
from edgert.errors import ClusterError, SourceError

pytest.importorskip("ray")
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": 300,
              "tie_word_embeddings": False},
    "opt": {"model_type": "opt", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 300},
    "mixtral": {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                "vocab_size": 100, "num_local_experts": 6, "num_experts_per_tok": 2}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster with room for two tasks at a time."""
    from ray.cluster_utils import Cluster
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = signal.getsignal(signal.SIGTERM)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made.address
    made.shutdown()
    signal.signal(signal.SIGTERM, before)  # Ray takes it, and tests that follow are about it


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bytes(tmp_path: Path, cluster: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is the one that Ray's own variable names."""
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    model = write_model(tmp_path / "model", **SHAPES[shape])
    made = {}
    more = {"predictors": True} if shape == "opt" else {}
    for name, options in (("here", more), ("there", {"cluster": "", **more}), ("not calibrated", {"calibrate": False})):
        convert(str(model), tmp_path / "m.edge", **options)  # type: ignore[arg-type]
        made[name] = (tmp_path / "m.edge").read_bytes()
    assert made["here"] == made["there"] != made["not calibrated"]


def working() -> list[psutil.Process]:
    """Workers that are converting a layer: Ray calls their processes so."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::_pieces_of_layer"):
            found.append(process)
    return found


def test_a_killed_worker_costs_its_layer(tmp_path: Path, cluster: str) -> None:
    model = write_model(tmp_path / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
                        vocab_size=300)
    convert(str(model), tmp_path / "here.edge")
    killed: list[int] = []

    def kill() -> None:
        while not over and len(killed) < 2:
            for process in working()[:1]:
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                time.sleep(1)
            time.sleep(0.02)

    over = False
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        convert(str(model), tmp_path / "there.edge", cluster=cluster)
    finally:
        over = True
        killer.join()
    assert killed and (tmp_path / "there.edge").read_bytes() == (tmp_path / "here.edge").read_bytes()


def test_going_on_after_an_interruption(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept while layers were away, on the cluster and here."""
    monkeypatch.setattr(module, "KEEP_S", 0)
    model = write_model(tmp_path / "model", **SHAPES["llama"])
    convert(str(model), tmp_path / "whole.edge")

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("model.layers.3"):
            raise KeyboardInterrupt

    for address in (cluster, None):
        with pytest.raises(KeyboardInterrupt):
            convert(str(model), tmp_path / "m.edge", progress=interrupt, cluster=cluster)
        said: list[str] = []
        reports: list[tuple[str, int, int]] = []
        convert(str(model), tmp_path / "m.edge", cluster=address, say=said.append,
                progress=lambda *report, reports=reports: reports.append(report))  # type: ignore[misc]
        done = [report[1] for report in reports]
        assert len(said) == 1 and done == sorted(done) and done[-1] == reports[-1][2]
        assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()


def test_what_a_worker_finds_wrong_is_said_as_here(tmp_path: Path, cluster: str) -> None:
    model = write_model(tmp_path / "model", **SHAPES["llama"])
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.4.mlp.up_proj.weight"][3, 3] = np.inf
    save_file(tensors, model / "model.safetensors")
    said = []
    for address in (cluster, None):
        with pytest.raises(SourceError) as error:
            convert(str(model), tmp_path / "m.edge", cluster=address, calibrate=False)
        said.append(str(error.value))
    assert said[0] == said[1] and "infinite" in said[0]
    assert list(tmp_path.iterdir()) == [model]


def test_no_cluster_there(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    for address, said in (("nonsense://1", "cannot be used"), ("127.0.0.1:1", "at 127.0.0.1:1 cannot be reached: "),
                          ("127.0.0.1:99999", "cannot be reached")):
        with pytest.raises(ClusterError, match=said):
            convert(str(model), tmp_path / "m.edge", cluster=address)
    assert list(tmp_path.iterdir()) == [model]
