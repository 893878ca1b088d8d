"""A session in a file: it goes on as if it had never been closed, or says what is wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.engine.engine import Engine
from edgert.engine.retention import POLICIES
from edgert.engine.session import Session
from edgert.engine.session_file import VERSION, open_session, save_session
from edgert.errors import SessionError
from edgert.kernels.pages import CACHE_TYPES, PAGE

CONTEXT, VOCABULARY = 8 * PAGE, 300
SHAPE = {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 2 * CONTEXT, "tie_word_embeddings": False}
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 4 * CONTEXT).tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle(write_bundle(tmp_path_factory.mktemp("saved") / "m.edge", "q4", size=0.3, **SHAPE)) as opened:
        yield opened


def reopened(path: Path, engine: Engine, cache_type: str, digest: str) -> Session:
    session = Session(engine.config, CONTEXT, cache_type)
    file = open_session(path)
    file.check(digest, session)
    file.read_into(session)
    return session


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("policy", ["stop", "window", "heavy"])
def test_saved_and_reopened_at_every_turn(bundle: Bundle, tmp_path: Path, policy: str, cache_type: str) -> None:
    """The same logits as if it had stayed, also after the policy has let go of something and turned the rest."""
    engine = make_engine(bundle, cache_type=cache_type, chunk=64, context=CONTEXT, policy=POLICIES[policy])
    stayed = Session(engine.config, CONTEXT, cache_type)
    session, path = Session(engine.config, CONTEXT, cache_type), tmp_path / "a.session"
    end = CONTEXT if policy == "stop" else len(TOKENS)
    for start in range(0, end, 97):
        turn = TOKENS[start:min(start + 97, end)]
        expected = engine.forward(stayed, turn)
        assert np.array_equal(engine.forward(session, turn).view(np.int32), expected.view(np.int32)), start
        save_session(path, session, bundle.digest, policy, {"turn": start})
        session.close()
        session = reopened(path, engine, cache_type, bundle.digest)
        assert open_session(path).saved.talk == {"turn": start} and session.tokens == stayed.tokens
    engine.close()


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path) -> Path:
    engine, path = make_engine(bundle, cache_type="f16", chunk=64, context=CONTEXT), tmp_path / "a.session"
    session = Session(engine.config, CONTEXT, "f16")
    engine.forward(session, TOKENS[:100])
    save_session(path, session, bundle.digest, "stop", {})
    engine.close()
    return path


def refusal(path: Path, bundle: Bundle, context: int = CONTEXT, cache_type: str = "f16",
            digest: str | None = None) -> str:
    session = Session(bundle.header.config, context, cache_type)
    with pytest.raises(SessionError) as caught:
        file = open_session(path)
        file.check(digest or bundle.digest, session)
        file.read_into(session)
    assert session.length == 0 and session.pool.free == session.pool.count, "the session is as before"
    return str(caught.value)


def test_any_flipped_bit_is_noticed(saved: Path, bundle: Bundle) -> None:
    """But in the zeros before the first block."""
    whole, start = saved.read_bytes(), open_session(saved).start
    header = 32 + int.from_bytes(whole[16:24], "little")
    places = np.random.default_rng(1).integers(0, len(whole), 200).tolist()
    for place in [*range(32), header - 1, start, len(whole) - 1, *places]:
        if header <= place < start:
            continue
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        saved.write_bytes(damaged)
        message = refusal(saved, bundle)
        assert str(saved) in message and "\n" not in message


def test_truncated_anywhere(saved: Path, bundle: Bundle) -> None:
    whole = saved.read_bytes()
    for length in (0, 5, 31, 32, 100, 4095, 4096, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert str(saved) in refusal(saved, bundle)


def test_what_it_does_not_go_with(saved: Path, bundle: Bundle, tmp_path: Path) -> None:
    assert "belongs to another model" in refusal(saved, bundle, digest="0" * 16)
    assert "has a cache of type f16, not q8; open it with --kv-type f16" in refusal(saved, bundle, cache_type="q8")
    assert "holds 100 tokens, the context has room for 99" in refusal(saved, bundle, context=99)
    newer = bytearray(saved.read_bytes())
    newer[8] = VERSION + 1
    saved.write_bytes(newer)
    assert f"of version {VERSION + 1}, this edgert reads version {VERSION}; update" in refusal(saved, bundle)
    (tmp_path / "text").write_text("hello")
    assert "is not a session of edgert" in refusal(tmp_path / "text", bundle)
    assert "no such file" in refusal(tmp_path / "nothing", bundle)


@pytest.mark.parametrize("reason", ["folder", "full"])
def test_one_that_cannot_be_saved_leaves_the_last(saved: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch,
                                                  reason: str) -> None:
    before, session = saved.read_bytes(), Session(bundle.header.config, CONTEXT, "f16")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    path = saved if reason == "full" else saved.parent / "a.session" / "inside"
    with pytest.raises(SessionError, match=r"cannot be saved: .*what was saved before is still there"):
        save_session(path, session, bundle.digest, "stop", {})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir() if "part" in p.name] == []


def test_killed_while_saving(bundle: Bundle, tmp_path: Path) -> None:
    """At any moment: there is always a whole one."""
    path = tmp_path / "a.session"
    code = ("import sys\n"
            "from edgert.bundle import Bundle\nfrom edgert.engine.session import Session\n"
            "from edgert.engine.session_file import save_session\n"
            "from pathlib import Path\nimport numpy as np\n"
            "with Bundle(sys.argv[1]) as bundle:\n"
            "    session = Session(bundle.header.config, 512, 'f32')\n"
            "    session.records(512)\n"
            "    for number in range(10000):\n"
            "        for block in session.blocks.ids:\n"
            "            session.pool.heads(block).view(np.uint8)[:] = number % 256\n"
            "        session.tokens = [number % 300] * 512\n"
            "        save_session(Path(sys.argv[2]), session, bundle.digest, 'stop', {'number': number})\n"
            "        print(number, flush=True)\n")
    for moment in range(0, 30, 1 if os.environ.get("EDGERT_TEST_ALL") else 3):
        child = subprocess.Popen([sys.executable, "-c", code, str(bundle.path), str(path)],
                                 stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        said = [int(child.stdout.readline())]
        time.sleep(moment * 0.0007)
        child.send_signal(signal.SIGKILL)
        said += [int(line) for line in child.stdout]
        child.wait()
        saved = open_session(path).saved
        assert saved.talk["number"] >= said[-1], "the last that was done is there, or a later one"
        session = Session(bundle.header.config, CONTEXT, "f32")
        open_session(path).read_into(session)
        assert (session.pool.heads(session.blocks.ids[0]).view(np.uint8) == saved.talk["number"] % 256).all()
        session.close()
