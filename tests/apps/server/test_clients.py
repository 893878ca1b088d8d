"""Other clients, unchanged: LangChain, llm, lm-evaluation-harness. They are in the extra `clients`; without them these
tests are skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import Server

import edgert

pytestmark = pytest.mark.xdist_group("server")
QUESTION = "Name three colours."


@pytest.fixture(scope="module")
def said(model: edgert.Model) -> str:
    return model.chat([{"role": "user", "content": QUESTION}], max_tokens=24).text()


def test_langchain(server: Server, said: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(model="any", base_url=f"{server.url}/v1", api_key="none", max_tokens=24, max_retries=0)
    answer = chat.invoke(QUESTION)
    assert answer.content == said and answer.usage_metadata["output_tokens"] == 24
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == said
    assert [a.content for a in chat.batch([QUESTION, QUESTION])] == [said, said]


def test_llm(server: Server, said: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([
        {"model_id": "here", "model_name": "any", "api_base": f"{server.url}/v1"},
        {"model_id": "here-at-once", "model_name": "any", "api_base": f"{server.url}/v1", "can_stream": False}]))
    for name in ("here", "here-at-once"):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", name, "-o", "max_tokens", "24", "--key", "x", QUESTION],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
            timeout=120)
        assert (done.returncode, done.stdout) == (0, said + "\n"), done.stderr


CAPITALS = [("France", "Paris", ["Berlin", "a cheese", "purple"]), ("Italy", "Rome", ["Oslo", "seven", "the moon"]),
            ("Japan", "Tokyo", ["Lima", "a river of gold", "Monday"]), ("Spain", "Madrid", ["Cairo", "no", "music"])]
CHOICES = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is the city of"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""
TEXTS = ["The sun rises in the east and sets in the west.", "Water boils at one hundred degrees.", "Once upon a time,"]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks as local files."""
    for name, task, rows in (
            ("capitals", CHOICES, [{"country": country, "choices": [right, *wrong]}
                                   for country, right, wrong in CAPITALS]),
            ("texts", PERPLEXITY, [{"text": text} for text in TEXTS])):
        (data := tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(task.replace("FILE", str(data)))
    return tmp_path


def evaluated(server: Server, tasks: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Results, and samples by task."""
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "capitals,texts", "--include_path",
         str(tasks), "--output_path", str(tasks / "out"), "--log_samples", "--model_args",
         f"model=any,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length=1024,num_concurrent=1"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")},
        capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tasks / "out").rglob("results_*.json")
    samples = {task: [json.loads(line) for path in (tasks / "out").rglob(f"samples_{task}_*.jsonl")
                      for line in path.read_text().splitlines()] for task in ("capitals", "texts")}
    return json.loads(results.read_text())["results"], samples


def test_lm_evaluation_harness(server: Server, tasks: Path, model: edgert.Model) -> None:
    """To the last digit what the model says by itself; and better than chance."""
    pytest.importorskip("lm_eval")
    results, samples = evaluated(server, tasks)

    def likelihood(before: str, text: str) -> tuple[float, bool]:
        """As the harness divides them: the two are tokenized together."""
        ids = model.tokenizer.encode(before + text)
        start = len(model.tokenizer.encode(before))
        scores = model.score(ids, top=1)
        return sum(scores.logprobs[start:].tolist()), all(
            scores.top[number][0][0] == ids[number] for number in range(start, len(ids)))

    by_country = {sample["doc"]["country"]: sample["filtered_resps"] for sample in samples["capitals"]}
    for country, right, wrong in CAPITALS:
        expected = [likelihood(f"The capital of {country} is the city of", f" {choice}") for choice in [right, *wrong]]
        assert [(float(logprob), str(greedy) == "True") for logprob, greedy in by_country[country]] == expected
    assert results["capitals"]["acc,none"] >= 0.75, "chance is a quarter"
    whole = {sample["doc"]["text"]: float(sample["filtered_resps"][0]) for sample in samples["texts"]}
    first = model.tokenizer.bos_token_id
    for text in TEXTS:
        ids = [first, *model.tokenizer.encode(text)]
        assert whole[text] == sum(model.score(ids).logprobs[1:].tolist())
