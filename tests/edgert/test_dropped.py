"""Models let go without `close`, and processes that fork: never a wrong answer, a crash or a wait without end."""

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import gc, os, sys, threading, edgert
from edgert.memory.budget import process_bytes
from edgert.residency.region import Region
from edgert.engine.worker import settle
path, room = sys.argv[1], int(sys.argv[2]) << 20

def load():
    settle()
    memory = process_bytes() + Region.promised + room if room else None
    return edgert.load(path, memory=memory, threads=2, context=64)

def answer(model):
    generation = model.generate("The capital of France is", max_tokens=6)
    generation.text()
    return generation.token_ids

with load() as model:
    expected = answer(model)
    assert (model.plan.disk is not None) == bool(room)
threads = threading.active_count()
"""

WAYS = {
    "in a function": """
def ask():
    return answer(load())
for _ in range(2):
    assert ask() == expected
""",
    "over the old one": """
for _ in range(2):
    model = load()
    assert answer(model) == expected
del model
""",
    "collected": """
for _ in range(2):
    model = load()
    model.me = model  # only the garbage collector finds it
    assert answer(model) == expected
    del model
    gc.collect()
    other = load()
    assert answer(other) == expected
    other.close()
""",
    "in the middle of an answer": """
for _ in range(2):
    generation = load().generate("The capital of France is", max_tokens=6)
    ids = [next(generation).token_id for _ in range(3)]
    assert ids == expected[:3]
    del generation
""",
    "from another thread": """
for _ in range(2):
    box = [load()]
    assert answer(box[0]) == expected
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert answer(load()) == expected
""",
}
END = """gc.collect()
settle()
for thread in threading.enumerate():
    if thread.name.startswith("edgert"):
        thread.join(10)
assert threading.active_count() == threads, threading.enumerate()
print("well")
"""


def run(code: str, bundle: Path, room: int) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code, str(bundle), str(room)], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


@pytest.mark.parametrize("room", [0, 75])
@pytest.mark.parametrize("way", WAYS)
def test_let_go(smollm2: Path, way: str, room: int) -> None:
    assert run(BEGIN + WAYS[way] + END, smollm2, room) == "well"


@pytest.mark.parametrize("room", [0, 75])
@pytest.mark.parametrize("state", ["answer(model)", "generation = model.generate('One, two,'); next(generation)"])
def test_the_interpreter_ends_first(smollm2: Path, state: str, room: int) -> None:
    """With a model that is open, or in the middle of an answer."""
    assert run(BEGIN + f"model = load(); {state}; print('well')", smollm2, room) == "well"


@pytest.mark.parametrize("room", [0, 75])
def test_a_fork_is_told_that_it_has_no_threads(smollm2: Path, room: int) -> None:
    """It may load a model of its own, and close, drop or keep the one it has inherited."""
    code = """
model = load()
assert answer(model) == expected
generation = model.generate("The capital of France is", max_tokens=6)
next(generation)
for number in range(4):
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            try:
                answer(model) if number % 2 else next(generation)
            except edgert.ModelError as error:
                message = str(error)
            if number == 0:
                model.close()
            if number == 1:
                del generation, model
                gc.collect()
            if number == 2:
                message += f" {answer(load()) == expected}"
        except BaseException as error:
            message = repr(error)
        os.write(write, message.encode())
        os.close(write)
        if number == 3:
            sys.exit()  # as a program ends
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        message = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert f"was loaded by process {os.getpid()}" in message and "after forking" in message, message
    assert message.endswith(" True") == (number == 2), message
    assert answer(model) == expected
print("well")
"""
    assert run(BEGIN + code, smollm2, room) == "well"
