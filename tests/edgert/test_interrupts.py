"""Ctrl-C at the instructions of ours that the main thread goes through: each answer is right, and so is the next.

At every eleventh, which takes seconds; with EDGERT_TEST_ALL at every one.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import small_engine
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.converters.convert import convert
from edgert.engine import worker
from edgert.residency.file import FlashFile

OURS = tuple(str(Path(edgert.__file__).parent / name)
             for name in ("engine/worker.py", "model.py", "opening.py", "generation/generation.py",
                          "generation/turns.py"))
STEP = 1 if os.environ.get("EDGERT_TEST_ALL") else 11


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("interrupts") / "model", size=0.2, num_hidden_layers=3,
                         intermediate_size=700, vocab_size=300)
    convert(str(give_tokenizer(folder)), folder.with_name("m.edge"), "q4")
    return folder.with_name("m.edge")


@pytest.fixture(params=[0.1, 1.0], ids=["streaming", "in memory"])
def load(request: pytest.FixtureRequest, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], edgert.Model]:
    """Loads the model, small as it is, with most of it streamed."""
    small_engine.use_plan(monkeypatch, bundle, keep=request.param, chunk=4)
    return lambda: edgert.load(bundle, threads=2, context=64)


# An interrupt that comes into a finalizer is reported there, and goes no further.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _as_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "_AFTER_CANCEL_S", 0.05)  # a job that was not even asked for is waited for in vain
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def answer(model: edgert.Model) -> list[int]:
    generation = model.generate("Of rivers", max_tokens=3, ignore_eos=True)
    generation.text()
    return generation.token_ids


def interrupted(number: int, action: Callable[[], object]) -> bool:
    """Do something, with a KeyboardInterrupt before instruction `number` of our files; whether it came to that."""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in OURS:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left < 0


def test_while_answering(load: Callable[[], edgert.Model]) -> None:
    with load() as model:
        expected = answer(model)
        number = 0
        while interrupted(number, lambda: answer(model)):
            assert answer(model) == expected, number
            number += STEP
        assert number > 200


def test_while_loading(load: Callable[[], edgert.Model]) -> None:
    """What was opened is closed again."""
    with load() as model:
        expected = answer(model)
    threads = threading.active_count()
    number = 0
    while interrupted(number, load):
        number += STEP
        gc.collect()
        worker.settle()
    assert number > 100
    with load() as model:
        assert answer(model) == expected
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_while_closing(load: Callable[[], edgert.Model]) -> None:
    number, came = 0, True
    while came:
        model = load()
        expected = answer(model)
        came = interrupted(number, model.close)
        number += STEP
        model.close()
        with pytest.raises(edgert.ModelError, match="closed"):
            answer(model)
        with load() as other:
            assert answer(other) == expected
    assert number > 20


def test_a_prompt_ends_at_once_and_what_was_done_of_it_stays(load: Callable[[], edgert.Model],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals, as they come: at once, though computing takes long, and the next attempt goes on from there."""
    reading = FlashFile.read

    def slowly(self: FlashFile, *arguments: Any) -> None:
        time.sleep(0.003)
        reading(self, *arguments)

    prompt = list(range(2, 50))
    with load() as model:
        if model.plan.disk is None:
            return
        monkeypatch.setattr(FlashFile, "read", slowly)
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            for _ in range(100):
                model.reset()
                model.generate(prompt, max_tokens=1).text()
        monkeypatch.setattr(FlashFile, "read", reading)
        generation = model.generate(prompt, max_tokens=3)
        generation.text()
        assert 0 < generation.statistics.prompt_computed < len(prompt)
        model.reset()
        again = model.generate(prompt, max_tokens=3)
        again.text()
        assert generation.token_ids == again.token_ids
