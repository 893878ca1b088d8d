"""`edgert chat --session`: a conversation that goes on, and what is said where it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest


def edgert(folder: Path, *arguments: str, question: str = "") -> subprocess.CompletedProcess[str]:
    return forked.edgert(*arguments, stdin=question, EDGERT_SESSIONS=str(folder))


def ask(folder: Path, bundle: Path, question: str, *more: str) -> str:
    done = edgert(folder, "chat", str(bundle), "--session", "trip", "--temperature", "0", "-n", "12", *more,
                  question=question)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(folder: Path) -> list[dict[str, str]]:
    done = edgert(folder, "sessions", "show", "trip", "--json")
    return json.loads(done.stdout)["messages"]


@pytest.mark.parametrize("more", [(), ("--kv-type", "q8", "--kv-policy", "heavy", "-c", "512")])
def test_a_conversation_goes_on(smollm2: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """The same as in one program; settings of the cache are those that it had."""
    first = ask(tmp_path, smollm2, "Name a large city in France.", *more)
    second = ask(tmp_path, smollm2, "And one in Italy?")
    assert [m["content"].strip() for m in shown(tmp_path)] == [
        "Name a large city in France.", first.strip(), "And one in Italy?", second.strip()]
    import edgert as api
    settings = dict(zip((m.lstrip("-").replace("-", "_") for m in more[::2]), more[1::2], strict=True))
    context = int(settings.pop("c", 4096))
    with api.load(smollm2, context=context, **settings) as model:  # type: ignore[arg-type]
        messages = [{"role": "user", "content": "Name a large city in France."}]
        answer = model.chat(messages, max_tokens=12).text()
        assert answer.strip() == first.strip()
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And one in Italy?"}]
        assert model.chat(messages, max_tokens=12).text().strip() == second.strip()


def test_the_seed_is_the_sessions_unless_another_is_given(smollm2: Path, tmp_path: Path) -> None:
    def answered(name: str, *more: str) -> str:
        done = edgert(tmp_path, "chat", str(smollm2), "--session", name, "--temperature", "1.5", "-n", "12", *more,
                      question="Name a large city in France.")
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = [answered(name, "--seed", "5") for name in "abc"]
    assert len(set(first)) == 1
    same, again, other = answered("a"), answered("b", "--seed", "5"), answered("c", "--seed", "6")
    assert same == again != other


def test_listed_and_removed(smollm2: Path, tmp_path: Path) -> None:
    assert "no sessions" in edgert(tmp_path, "sessions").stdout
    ask(tmp_path, smollm2, "Hello.")
    listed = edgert(tmp_path, "sessions")
    assert listed.stdout.startswith("trip") and "as f16, policy stop" in listed.stdout
    assert json.loads(edgert(tmp_path, "sessions", "--json").stdout)["sessions"][0]["name"] == "trip"
    assert edgert(tmp_path, "sessions", "remove", "trip").stdout == "removed the session trip\n"
    gone = edgert(tmp_path, "sessions", "show", "trip")
    assert gone.returncode == 1 and gone.stderr == "edgert: there is no session trip; `edgert sessions` lists them\n"


def test_what_cannot_be(smollm2: Path, tmp_path: Path) -> None:
    from edgert.sessions import using_session
    ask(tmp_path, smollm2, "Hello.", "--system", "Be short.")

    def refused(*arguments: str) -> str:
        done = edgert(tmp_path, "chat", str(smollm2), "--session", *arguments, question="Hello.")
        assert done.returncode == 1 and done.stderr.startswith("edgert: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "cannot be the name of a session" in refused("../trip")
    assert "the session has another system message already" in refused("trip", "--system", "Be long.")
    assert "has a cache of type f16, not q8; open it with --kv-type f16" in refused("trip", "--kv-type", "q8")
    os.environ["EDGERT_SESSIONS"] = str(tmp_path)
    try:
        with using_session("trip"):
            assert "the session trip is in use by another program" in refused("trip")
    finally:
        del os.environ["EDGERT_SESSIONS"]
    path = tmp_path / "trip.session"
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    assert "does not match its checksum" in refused("trip")
    assert path.read_bytes() == whole, "what is damaged is left for the user to look at"


def test_a_cache_that_is_too_small_for_its_policy(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgert", "run", str(smollm2), "-p", "Hi", "--kv-policy", "heavy",
                           "-c", "100"], text=True, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "edgert: the cache policy heavy needs a context of at least 512 tokens, not 100\n"
