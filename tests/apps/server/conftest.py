"""Servers of two models."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server
from tiny_model import give_tokenizer, write_model

from edgert.converters.convert import convert

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
CONTEXT = 512


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights and bytes as tokens, quick to load and to answer."""
    folder = write_model(tmp_path_factory.mktemp("tiny") / "tiny", vocab_size=258, max_position_embeddings=CONTEXT)
    give_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    convert(str(folder), bundle := folder.with_suffix(".edge"), "q4")
    return bundle


@pytest.fixture(scope="session")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2; answers are greedy where requests do not say otherwise."""
    made = Server(smollm2, "-c", "1024", "--temperature", "0", errors=tmp_path_factory.mktemp("server") / "errors")
    yield made.until_ready()
    assert made.end() == 0 and "Traceback" not in made.said, made.said


@pytest.fixture(scope="session")
def tiny_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny model."""
    made = Server(tiny, "--temperature", "0", errors=tmp_path_factory.mktemp("server") / "errors")
    yield made.until_ready()
    assert made.end() == 0 and "Traceback" not in made.said, made.said
