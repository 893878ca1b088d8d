"""Pruning says before it begins that it does not fit into the memory that it may use."""

import tracemalloc
from pathlib import Path

import pytest
from tiny_model import write_model

from edgert.converters.calibration_text import shipped_windows
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.converters.pruning import memory
from edgert.converters.pruning.pruning import pruned
from edgert.converters.pruning.request import requested
from edgert.errors import SourceError

SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1, "vocab_size": 300,
         "num_attention_heads": 16, "head_dim": 32, "max_position_embeddings": 256}


@pytest.mark.parametrize("text", ["magnitude:50%", "wanda:50%", "wanda:50%:16x4", "dsnot:50%", "sparsegpt:50%"])
def test_enough_is_reckoned(tmp_path: Path, text: str) -> None:
    """What arrays really take is no more, and not far less."""
    source, request = open_source(str(write_model(tmp_path / "model", **SHAPE))), requested(text)  # type: ignore[arg-type]
    windows = shipped_windows(source)
    assert windows is not None
    for _ in range(2):  # the first time functions are compiled, which takes memory of its own
        tracemalloc.start()
        with pruned(source, request, windows[:2], tmp_path / "m.edge", lambda *_: None, print):
            taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    needed = memory.needed_bytes(source, request, windows[:2].size)
    assert 0.4 * needed < taken < 1.1 * needed


def test_too_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the limit of a control group; nothing is left of it."""
    model = write_model(tmp_path / "model", **SHAPE)  # type: ignore[arg-type]
    monkeypatch.setattr(memory, "control_groups", lambda: iter([(50_000_000, 30_000_000)]))
    with pytest.raises(SourceError, match=r"sparsegpt takes about \d+ MB of memory, and 20 MB may be used: allow it "
                                          "more, or prune by wanda"):
        convert(str(model), tmp_path / "m.edge", prune="sparsegpt:50%")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
