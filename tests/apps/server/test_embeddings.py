"""/v1/embeddings beside a chat, in one budget that the kernel keeps: openai-python, LangChain, and what is refused."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import openai
import psutil
import pytest
from served import Server, limited

import edgert
from edgert import Embedder
from edgert.commands.embedding import MOST_BODY, MOST_TEXTS

pytestmark = pytest.mark.xdist_group("server")
TEXTS = ["Cats sleep all day.", "Un chat dort.", "The budget is 400M.", "word " * 500]
BUDGET = "400M"


@pytest.fixture(scope="module")
def expected(minilm: Path) -> np.ndarray:
    with Embedder(minilm, threads=2) as embedder:
        return embedder.embed(TEXTS)


@pytest.fixture(scope="module")
def both(smollm2: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 and all-MiniLM-L6-v2."""
    made = Server(smollm2, "-c", "512", "--temperature", "0", "-m", BUDGET, "--embeddings", str(minilm),
                  before=limited(BUDGET), errors=tmp_path_factory.mktemp("server") / "errors")
    yield made.until_ready()
    assert made.end() == 0 and "Traceback" not in made.said, made.said
    if limited(BUDGET):
        kept: dict[str, Any] = json.loads(made.said.strip().splitlines()[-1])
        assert kept["oom_kills"] == 0 and kept["peak_bytes"] <= 400 << 20


def test_openai(both: Server, expected: np.ndarray) -> None:
    """By itself it asks for base64, and decodes it."""
    client = both.client()
    for options in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="any", input=TEXTS, **options)  # type: ignore[call-overload]
        assert [entry.index for entry in answer.data] == [0, 1, 2, 3] and answer.model == "all-minilm-l6-v2"
        np.testing.assert_allclose([entry.embedding for entry in answer.data], expected, rtol=0, atol=2e-6)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 256
    one = client.embeddings.create(model="any", input=TEXTS[0], dimensions=8).data[0].embedding
    np.testing.assert_allclose(one, expected[0][:8] / np.linalg.norm(expected[0][:8]), rtol=0, atol=2e-6)


def test_ollama(both: Server, expected: np.ndarray) -> None:
    client = ollama.Client(both.url)
    answer = client.embed("all-minilm-l6-v2", TEXTS)
    np.testing.assert_allclose(answer.embeddings, expected, rtol=0, atol=2e-6)
    assert answer.model == "all-minilm-l6-v2" and answer.prompt_eval_count and answer.prompt_eval_count > 256
    assert answer.total_duration and answer.total_duration > 0
    one = client.embed("all-minilm:l6-v2", TEXTS[0], dimensions=8).embeddings[0]
    np.testing.assert_allclose(one, expected[0][:8] / np.linalg.norm(expected[0][:8]), rtol=0, atol=2e-6)
    for settings, message in (({"model": "other", "input": "a"}, "'other' not found"),
                              ({"model": "all-minilm-l6-v2", "input": ""}, "empty text"),
                              ({"model": "all-minilm-l6-v2", "input": "a", "truncate": False}, "truncate is false")):
        with pytest.raises(ollama.ResponseError, match=message):
            client.embed(**settings)  # type: ignore[arg-type]


def test_listed_for_ollama(both: Server, smollm2: Path) -> None:
    """Open WebUI offers for documents what it finds in the list."""
    client = ollama.Client(both.url)
    model, embedding = client.list().models
    assert (model.model, embedding.model) == (f"{smollm2.stem}:latest", "all-minilm-l6-v2:latest")
    assert embedding.size and embedding.size > 10 << 20 and embedding.digest and len(embedding.digest) == 64
    shown = client.show("all-minilm:l6-v2")
    assert shown.capabilities == ["embedding"] and shown.details == embedding.details
    assert shown.modelinfo and shown.modelinfo["bert.embedding_length"] == 384
    assert shown.modelinfo["bert.context_length"] == 256


def test_langchain(both: Server, expected: np.ndarray) -> None:
    langchain = pytest.importorskip("langchain_openai")
    embeddings = langchain.OpenAIEmbeddings(model="any", base_url=f"{both.url}/v1", api_key="none",
                                            check_embedding_ctx_length=False)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected[0], rtol=0, atol=2e-6)


def test_the_most_that_fits_while_it_answers(both: Server, smollm2: Path) -> None:
    """Large requests, several at once and beside a chat: see the fixture for memory. Their order is that of texts."""
    texts = [f"text {number}" for number in range(200)] + ["some words of \U0001f389 text " * 5000] * 12
    body, answers = {"input": texts, "encoding_format": "base64"}, []

    def ask() -> None:
        answers.append(both.ask("/v1/embeddings", body).json())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    said = both.client().chat.completions.create(model="any", max_tokens=16, messages=[
        {"role": "user", "content": "Name three colours."}]).choices[0].message.content
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1] and len(answers[0]["data"]) == len(texts)
    with edgert.load(smollm2, threads=2, context=512) as model:
        asked = [{"role": "user", "content": "Name three colours."}]
        assert said == model.chat(asked, max_tokens=16).text(), "the budget decides the speed, not the answer"


@pytest.mark.parametrize(("body", "why"), [
    ({"input": [1, 2, 3]}, "token ids .* check_embedding_ctx_length=False"),
    ({"input": [[1], [2]]}, "token ids .* check_embedding_ctx_length=False"),
    ({"input": ""}, "empty text"), ({"input": ["a", ""]}, "empty text"), ({"input": []}, "empty list"),
    ({"input": None}, "give a text"), ({"input": ["a", 1]}, "give a text"), ({"input": {"a": 1}}, "give a text"),
    ({}, "required field `input`"), ({"input": "a", "dimensions": 385}, "have 384"),
    ({"input": "a", "dimensions": 0}, "dimensions"), ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ({"input": ["a"] * (MOST_TEXTS + 1)}, f"at most {MOST_TEXTS}"), (b"{", "not JSON"),
    (b'{"input": "\\ud800"}', "not JSON"),
])
def test_refusals(both: Server, body: Any, why: str) -> None:
    answer = both.ask("/v1/embeddings", body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert re.search(why, error["message"]), error


def test_too_large(both: Server) -> None:
    answer = both.ask("/v1/embeddings", {"input": "x" * MOST_BODY})
    assert answer.status_code == 413 and "send fewer texts at once" in answer.text


def test_models(both: Server, smollm2: Path) -> None:
    assert [model.id for model in both.client().models.list()] == [smollm2.stem, "all-minilm-l6-v2"]
    assert both.client().models.retrieve("all-minilm-l6-v2").model_extra == {"max_model_len": 256}


def test_in_the_plan_and_the_status(both: Server, smollm2: Path, minilm: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgert", "plan", smollm2, "-c", "512", "-t", "2", "-m", BUDGET,
                           "--json", "--for", "serve", "--embeddings", minilm],
                          capture_output=True, text=True, check=True)
    planned = json.loads(done.stdout)["parts"]["embeddings"]
    assert planned == both.status()["parts"]["embeddings"] > 100 << 20
    assert both.status()["used"] < 400 << 20


def test_a_client_that_leaves_and_a_process_that_dies(both: Server) -> None:
    with pytest.raises(openai.APITimeoutError):
        both.client(timeout=0.3).embeddings.create(model="any", input=["word " * 400] * 500)
    assert both.ask("/v1/embeddings", {"input": "a"}).status_code == 200
    for child in psutil.Process(both.serving.pid).children():
        child.kill()
    assert both.ask("/v1/embeddings", {"input": "a"}).status_code == 200


def test_a_server_without(tiny_server: Server) -> None:
    answer = tiny_server.ask("/v1/embeddings", {"input": "a"})
    assert answer.status_code == 404 and "start it with --embeddings MODEL" in answer.text


def test_a_model_that_is_not_here(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgert", "serve", tiny, "--embeddings", "all-minilm-l6-v2"],
                          capture_output=True, text=True, check=False,
                          env={**os.environ, "EDGERT_MODELS": str(tmp_path)})
    assert (done.returncode, done.stderr) == (
        1, "edgert: all-minilm-l6-v2: is not here yet; edgert pull all-minilm-l6-v2 fetches it\n")
