"""Gemma 3 270M, the real file: as llama.cpp computes it, and the same answer wherever its weights are."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgert

pytestmark = pytest.mark.reference
TEXT = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def gemma(gemma_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("gemma") / "gemma.edge"
    edgert.convert(str(gemma_gguf), out)
    yield out
    out.unlink()


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="edgert[llama] is not installed")
def test_perplexity_is_that_of_llama_cpp(gemma: Path, gemma_gguf: Path) -> None:
    """Over a window of 1024 tokens, twice what most layers see. A ratio of so few is uncertain by a hundredth."""
    done = subprocess.run([sys.executable, "-m", "edgert", "eval", str(gemma), "--text", str(TEXT), "--against",
                           str(gemma_gguf), "--window", "1024", "--max-tokens", "1024", "--json"],
                          capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["ratio"] < 1.03 and found["next_token_agreement"] > 0.85 and found["peer"]["same_token_ids"]


@pytest.mark.parametrize("settings", [{"memory": "360M"}, {"memory": "430M", "speculation": 4},
                                      {"threads": 1, "speculation": "auto"}], ids=repr)
def test_the_same_answer_at_every_placement(gemma: Path, settings: dict) -> None:
    prompt, answers = TEXT.read_text(encoding="utf-8")[:2800], []
    for each in ({"threads": 2, "speculation": "off"}, {"threads": 2, **settings}):
        with edgert.load(gemma, context=1024, **each) as model:
            answers.append(model.generate(prompt, max_tokens=16, temperature=0).text())
    assert answers[0] == answers[1]
