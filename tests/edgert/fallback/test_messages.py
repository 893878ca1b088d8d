"""What a program and its llama.cpp process tell each other; and a program without llama-cpp-python."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.errors import ModelError
from edgert.fallback import model as fallback
from edgert.fallback.messages import (
    Compute,
    Failed,
    Logits,
    Opened,
    Reply,
    receive_reply,
    receive_request,
)
from edgert.pipes import send


def passed_on(message: Any, logits: np.ndarray | None = None) -> tuple[Any, np.ndarray]:
    """What arrives at the other end of a pipe."""
    read, write = os.pipe()
    sender = threading.Thread(target=send, args=(write, message, logits))
    sender.start()
    try:
        return receive_reply(read) if isinstance(message, Reply) else (receive_request(read), np.empty(0))
    finally:
        sender.join()
        os.close(read)
        os.close(write)


def test_messages_arrive_as_they_were() -> None:
    opened = Opened(512, 1024, 3, None, False, [2], {2: b"\xff<end>"}, None)
    assert passed_on(opened)[0] == opened
    assert passed_on(Compute([1, 2], 1))[0] == Compute([1, 2], 1)
    logits = np.random.default_rng(0).standard_normal((3, 100_000), np.float32)  # more than a pipe holds
    reply, came = passed_on(Logits(*logits.shape), logits)
    assert reply == Logits(3, 100_000) and np.array_equal(came, logits)
    assert passed_on(Failed("why"))[1].shape == (0, 0)


def test_without_llama_cpp_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed: pip install 'edgert\[llama\]'$"):
        fallback.LlamaModel(tmp_path / "x.gguf")
