"""Conversations, and the files that they are saved to."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgert
from edgert.apps.conversation import Conversation
from edgert.control_characters import visible


def talk(*questions: str) -> Conversation:
    conversation = Conversation(system="Be brief.")
    for question in questions:
        conversation.ask(question)
        conversation.answer(question.upper())
    return conversation


def saved(path: Path) -> list[str]:
    return [message["content"] for message in json.loads(path.read_text())["messages"]]


def refused(path: object) -> str:
    with pytest.raises(edgert.EdgertError) as caught:
        talk("a").save(str(path))
    message = str(caught.value)
    assert message.startswith(f"{visible(str(path))}: the chat cannot be saved: ")
    return message


def test_a_file_keeps_its_mode_and_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("notes.json", "notes.json.part"):
        Path(name).write_text("mine")
    Path("notes.json").chmod(0o600)
    Path("link.json").symlink_to("notes.json")
    talk("a").save("notes.json")
    talk("a", "b").save("link.json")
    assert saved(Path("notes.json")) == ["Be brief.", "a", "A", "b", "B"]
    assert stat.S_IMODE(Path("notes.json").stat().st_mode) == 0o600
    assert Path("link.json").is_symlink()
    assert Path("notes.json.part").read_text() == "mine"
    before = os.umask(0o027)
    try:
        talk("a").save("new.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("new.json").stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "new.json", "notes.json", "notes.json.part"]


def test_places_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    for path in (".", "..", "/", "./", "folder", "folder/", "new/", "~"):
        assert "that is a folder" in refused(path)
    for path in ("/dev/null", "pipe"):
        assert "that is a device or the like" in refused(path)
    for path in ("none/x.json", "x" * 300, "a\0b", "~nobody-of-that-name/x", "folder/" * 2000 + "x"):
        refused(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]
    assert Path("/dev/null").is_char_device()


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "notes.json"
    file.write_text("mine")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left on device" in refused(file)
    assert file.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["notes.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is write-protected for root")
def test_a_write_protected_file_is_not_replaced(tmp_path: Path) -> None:
    (file := tmp_path / "notes.json").write_text("mine")
    file.chmod(0o400)
    assert "write-protected" in refused(file)
    assert file.read_text() == "mine"


@given(st.integers(1, 6), st.integers(0, 8), st.booleans())
def test_turns_left_out_are_not_told_and_still_saved(turns: int, times: int, unanswered: bool) -> None:
    conversation = talk(*(f"q{n}" for n in range(turns)))
    if unanswered:
        conversation.ask("last")
    most = turns - (not unanswered)
    assert [conversation.leave_out() for _ in range(times)] == [n < most for n in range(times)]
    told = [m["content"] for m in conversation.messages]
    assert told[0] == "Be brief."
    assert told[1] == ([f"q{n}" for n in range(turns)] + ["last"])[min(times, most)]
    assert len(conversation.turns) == 2 * turns + unanswered
