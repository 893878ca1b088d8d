"""One model asked from many threads: newer answers end older ones, or wait for them in order."""

import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import edgert
from edgert.generation.turns import Turn, Turns

PROMPT = "The capital of France is"


@pytest.fixture
def model(smollm2: Path) -> Iterator[edgert.Model]:
    with edgert.load(smollm2, threads=1, context=256) as loaded:
        yield loaded


def soon(condition: Callable[[], bool]) -> None:
    """Wait until something is so; a minute is for a busy machine."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def alone(model: edgert.Model, prompt: str) -> str:
    return model.generate(prompt, max_tokens=6).text()


def test_answers_from_four_threads(model: edgert.Model) -> None:
    prompts = [f"{n} and one is" for n in range(24)]
    expected = [alone(model, prompt) for prompt in prompts]
    messages = [{"role": "user", "content": "Say yes."}]
    chat = model.chat(messages, max_tokens=6).text()

    def ask(number: int) -> tuple[str, str]:
        return (model.generate(prompts[number], max_tokens=6, wait=True).text(),
                model.chat(messages, max_tokens=6, wait=True).text() if number % 10 == 0 else chat)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(24))) == [(text, chat) for text in expected]


def test_first_come_first_served(model: edgert.Model) -> None:
    order: list[int] = []
    under_way = model.generate(PROMPT, max_tokens=3, ignore_eos=True)
    next(under_way)

    def ask(number: int) -> None:
        for piece in model.generate(PROMPT, max_tokens=2, ignore_eos=True, wait=True):
            if piece.finish_reason is None:
                order.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        soon(lambda number=number: model._turns.waiting == number + 1)
    assert order == []
    under_way.text()
    for thread in threads:
        thread.join(60)
    assert order == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def finish(generation: edgert.Generation) -> None:
    generation.text()


def take_the_last_piece(generation: edgert.Generation) -> None:
    while next(generation).finish_reason is None:
        pass


@pytest.mark.parametrize("leave", [finish, take_the_last_piece, edgert.Generation.close, None],
                         ids=["finished", "last piece taken", "closed", "let go"])
def test_what_ends_the_wait(model: edgert.Model, leave: Callable[[edgert.Generation], None] | None) -> None:
    """Letting go counts at once, not when garbage is collected next."""
    expected = alone(model, PROMPT)
    gc.disable()
    try:
        under_way = model.generate("Once upon", max_tokens=30)
        next(under_way)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: model.generate(PROMPT, max_tokens=6, wait=True).text())
            soon(lambda: model._turns.waiting == 1)
            if leave is not None:
                leave(under_way)
            else:
                del under_way
            assert waiting.result(60) == expected
    finally:
        gc.enable()


def test_an_answer_that_was_never_begun_keeps_nobody_waiting(model: edgert.Model) -> None:
    abandoned = [model.generate(PROMPT), model.generate(PROMPT, wait=True)]
    assert model.generate("Once upon", max_tokens=2, wait=True).text()
    for generation in abandoned:
        generation.close()


def test_one_that_does_not_wait_goes_before_all_that_wait(model: edgert.Model) -> None:
    expected = alone(model, PROMPT)
    under_way = model.generate(PROMPT)
    next(under_way)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: model.generate(PROMPT, max_tokens=6, wait=True).text())
        soon(lambda: model._turns.waiting == 1)
        newer = model.generate("Once upon", max_tokens=8)
        next(newer)
        with pytest.raises(edgert.ModelError, match="ended by a newer one"):
            next(under_way)
        assert model._turns.waiting == 1
        newer.text()
        assert waiting.result(60) == expected


def test_an_error_gives_the_turn_back(model: edgert.Model) -> None:
    def fail(*_: object, **__: object) -> None:
        raise edgert.ModelError("the disk is gone")

    generation = model.generate(PROMPT)
    next(generation)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("forward", "verify"):
            patch.setattr(model._engine, name, fail)
        with pytest.raises(edgert.ModelError, match="the disk is gone"):
            next(generation)
    assert model.generate(PROMPT, max_tokens=2, wait=True).text()


@pytest.mark.parametrize("leave", ["model", "generation"])
def test_closing_while_others_wait(model: edgert.Model, leave: str) -> None:
    """Closing the model ends all waiting; closing an answer that waits takes it out of the queue."""
    under_way = model.generate(PROMPT)
    next(under_way)
    queued = [model.generate(PROMPT, wait=True) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(generation.text) for generation in queued]
        soon(lambda: model._turns.waiting == 3)
        for closed in [model] if leave == "model" else queued:
            closed.close()
        for future in waiting:
            with pytest.raises(edgert.ModelError, match="has been closed" if leave == "model" else "was closed"):
                future.result(60)
    if leave == "generation":
        assert next(under_way).text is not None
    else:
        with pytest.raises(edgert.ModelError, match="has been closed"):
            model.generate(PROMPT, wait=True).text()


@pytest.mark.parametrize("moment", range(9))  # the lines before it blocks
def test_a_turn_given_back_by_the_garbage_collector(moment: int) -> None:
    """At any line of `take`, by the same thread: nobody waits for what is already free."""
    turns, held, served, lines = Turns(), Turn(), threading.Event(), itertools.count()
    turns.take(held, wait=False)

    def collect(frame: object, event: str, _: object) -> object:
        if event == "line" and next(lines) == moment:
            turns.give_back(held)
        return collect

    def work() -> None:
        sys.settrace(collect)  # type: ignore[arg-type]
        turns.take(Turn(), wait=True)
        sys.settrace(None)
        served.set()

    threading.Thread(target=work, daemon=True).start()
    assert served.wait(20)


INTERRUPTED = """
import os, signal, sys, threading, time, edgert
with edgert.load(sys.argv[1], threads=1, context=64) as model:
    under_way = model.generate("Once", ignore_eos=True)
    next(under_way)
    def interrupt():
        while not model._turns.waiting:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        model.generate("Twice", wait=True).text()
    except KeyboardInterrupt:
        print(model._turns.waiting, bool(under_way.text()), bool(model.generate("Twice", wait=True).text()))
"""


def test_ctrl_c_ends_the_wait(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(smollm2)], capture_output=True, text=True, timeout=60,
                          check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert (done.stdout, done.stderr) == ("0 True True\n", "")
