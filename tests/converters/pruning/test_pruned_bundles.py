"""Pruned models are packed in the sparse formats that suit, and compute what their weights say."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.bundle import Bundle
from edgert.converters.convert import convert

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 300,
         "num_attention_heads": 8, "max_position_embeddings": 256}


def logprobs(bundle: Path) -> np.ndarray:
    with edgert.load(bundle, context=64) as model:
        return model.score(list(range(2, 60))).logprobs[1:]


@pytest.mark.parametrize(("text", "form"), [("wanda:50%:2:4", "q4n"), ("sparsegpt:50%:2:4", "q4n"),
                                            ("magnitude:75%:16x1", "q4b"), ("wanda:75%:16x4", "q4b")])
def test_sparse_formats(tmp_path: Path, text: str, form: str) -> None:
    """The bundle is smaller than the dense one, and its scores are those of the same weights as 16-bit floats, as near
    as 4 bits are."""
    model = give_tokenizer(write_model(tmp_path / "model", size=0.1, **SHAPE))  # type: ignore[arg-type]
    said: list[str] = []
    convert(str(model), tmp_path / "m.edge", "q4", prune=text, say=said.append)
    convert(str(model), tmp_path / "fine.edge", "f16", prune=text)
    convert(str(model), tmp_path / "dense.edge", "q4")
    with Bundle(tmp_path / "m.edge") as bundle:
        header = bundle.header
    formats = [*(n.gate_up for n in header.neurons), *(n.down for n in header.neurons),
               *(tensor.format for name, tensor in header.tensors.items() if "self_attn" in name)]
    assert sum(found.startswith(form) for found in formats) >= len(formats) - 2  # q6 is kept where preset q4 has it
    assert any(form in sentence for sentence in said)
    assert (tmp_path / "m.edge").stat().st_size < (tmp_path / "dense.edge").stat().st_size
    made, fine = logprobs(tmp_path / "m.edge"), logprobs(tmp_path / "fine.edge")
    assert np.square(made - fine).mean() < 0.5 * fine.var() and fine.std() > 0.01
