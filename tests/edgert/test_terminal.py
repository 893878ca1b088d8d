"""Standard streams as real processes have them: closed, full, not UTF-8, a terminal that no text may steer."""

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import change_header, header_of, write_bundle

import edgert
from edgert.control_characters import one_line, visible

EDGERT = [sys.executable, "-m", "edgert"]
ESCAPE = "\x1b]0;owned\x07\x1b[31m"
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LATIN_1 = {"PYTHONIOENCODING": "latin-1"}


def call(*arguments: object, shell: str = "", stdin: bytes = b"",
         **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Call edgert with arguments, str or bytes; `shell` stands behind them, with redirections."""
    if not shell and not stdin and not environment and not any(isinstance(a, bytes) for a in arguments):
        short = forked.edgert(*arguments)
        done = subprocess.CompletedProcess(short.args, short.returncode, short.stdout.encode(), short.stderr.encode())
        assert b"Traceback" not in done.stderr, done
        return done
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", *EDGERT,
               *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False,
                          env={**os.environ, **environment})
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done
    return done


def on_a_terminal(*command: object) -> str:
    """What a process shows on a pseudo-terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(list(map(str, command)), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError as error:
        assert error.errno == errno.EIO  # the other side has ended
    os.close(master)
    process.wait(timeout=60)
    return shown.decode().replace("\r\n", "\n")


@given(st.text(), st.text("\x00\x1b\x7f\x80\x9b\r\n\t\x85\u2028ab", max_size=20))
def test_what_is_made_visible_holds_no_control_character(text: str, controls: str) -> None:
    for given_text in (text, controls):
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in visible(given_text) if c not in "\n\t")
        assert len(one_line(given_text).splitlines()) <= 1
    assert visible("straße\t😀\n") == "straße\t😀\n"
    assert visible("a\r\nb\rc\x9b") == "a\nb\\x0dc\\x9b"


@pytest.mark.parametrize("arguments", [
    ["--help"], ["inspect", "BUNDLE"], ["pull", "--list"], ["chat", "BUNDLE", "-n", "2"],
    ["run", "BUNDLE", "-p", "x", "-n", "2"], ["run", "absent.edge", "-p", "x"]])
def test_closed_descriptors(smollm2: Path, arguments: list[str]) -> None:
    words = [str(smollm2) if word == "BUNDLE" else word for word in arguments]
    whole = forked.edgert(*words, stdin="Hello")
    no_output = call(*words, shell=">&-", stdin=b"Hello")
    assert no_output.returncode == 1
    assert no_output.stderr.startswith(b"edgert: ") and no_output.stderr.count(b"\n") == 1
    no_errors = call(*words, shell="2>&-", stdin=b"Hello")
    assert no_errors.returncode == whole.returncode
    assert bool(no_errors.stdout) == bool(whole.stdout)
    assert call(*words, shell="<&- >&- 2>&-").returncode == 1
    no_input = call(*words, shell="<&-")
    if words[0] == "chat":
        assert no_input.returncode == 1
        assert b"standard input cannot be read: bad file descriptor" in no_input.stderr
    else:
        assert no_input.returncode == whole.returncode


def test_no_file_takes_the_place_of_a_closed_descriptor(tmp_path: Path) -> None:
    """What is meant for the user must not end up in the bundle that is being written."""
    folder = write_bundle(tmp_path / "m.edge").with_suffix(".model")
    call("convert", folder, tmp_path / "other.edge", shell=">&- 2>&-")
    assert (tmp_path / "other.edge").read_bytes() == (tmp_path / "m.edge").read_bytes()


def test_a_full_disk(smollm2: Path) -> None:
    for arguments in (["inspect", smollm2], ["run", smollm2, "-p", "x", "-n", 2]):
        done = call(*arguments, shell="> /dev/full")
        assert done.returncode == 1
        assert done.stderr == b"edgert: standard output cannot be written: no space left on device\n"
    assert call("run", smollm2, "-p", "x", "-n", 2, shell="2> /dev/full").returncode == 0


@pytest.mark.parametrize("arguments", [["inspect", "--tensors"], ["plan"], ["doctor"]])
def test_a_reader_that_leaves(smollm2: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*EDGERT, *arguments, str(smollm2)], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("environment", [ASCII, LATIN_1], ids=["C", "latin-1"])
def test_charts_and_answers_in_other_encodings(smollm2: Path, environment: dict[str, str]) -> None:
    """A chart keeps its columns; letters that the encoding lacks, as among tokens drawn at random, become escapes."""
    chart = call("plan", smollm2, **environment).stdout.decode("latin-1")
    assert "#####" in chart and "+-----" in chart
    rows = [line for line in chart.splitlines() if line[9:10] in ("|", "+")]
    assert len(rows) == 13 and max(map(len, rows)) == 70
    wild = ["-n", 200, "-c", 256, "--temperature", 99, "--top-k", 0, "--top-p", 1, "--min-p", 0, "--seed", 1]
    for arguments, stdin in ((["run", smollm2, "-p", "x", "--ignore-eos"], b""), (["chat", smollm2], b"Hello")):
        done = call(*arguments, *wild, stdin=stdin, **environment)
        assert done.returncode == 0
        assert b"\\u" in done.stdout


def test_bytes_that_are_no_text(smollm2: Path) -> None:
    for arguments, stdin, words in (
            (["run", smollm2], b"ab\xff", b"standard input is not UTF-8 text: byte 0xff at offset 2"),
            (["chat", smollm2], b"\xe4", b"standard input is not UTF-8 text: byte 0xe4 at offset 0"),
            (["run", smollm2, "-p", b"a\xff"], b"", b"--prompt is not UTF-8 text: byte 0xff at offset 1"),
            (["run", smollm2, "-p", "x", "--stop", "x", "--stop", b"\xff"], b"", b"--stop is not UTF-8 text"),
            (["run", smollm2, "-p", "x", "--chat", "--system", b"\xff"], b"", b"--system is not UTF-8 text"),
            (["chat", smollm2, "--system", b"\xff"], b"x", b"--system is not UTF-8 text"),
            (["bench", smollm2, "-p", b"\xff"], b"", b"--prompt is not UTF-8 text")):
        done = call(*arguments, stdin=stdin, PYTHONUTF8="1")
        assert done.returncode == 1
        assert done.stderr.startswith(b"edgert: " + words), done


def test_an_ascii_locale_takes_utf_8(smollm2: Path) -> None:
    """As Python does by itself in the C locale (PEP 538, PEP 540)."""
    question = "Größe “x”"
    texts = {call("run", smollm2, "-n", 8, *more, stdin=stdin, **environment).stdout.replace(b"\xe2\x80\x9d", b'"')
             for more, stdin in ((["-p", question], b""), ([], question.encode()))
             for environment in (ASCII, {"PYTHONUTF8": "1"})}
    assert len(texts) == 1


def with_section(bundle: Path, out: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a bundle with a section changed, which may become shorter."""
    content = bytearray(bundle.read_bytes())
    section = header_of(bundle)["sections"][name]
    place = slice(section["offset"], section["offset"] + section["length"])
    changed = change(bytes(content[place])).ljust(section["length"])
    assert len(changed) == section["length"]
    content[place] = changed
    out.write_bytes(content)

    def checksum(header: dict[str, dict[str, dict[str, str]]]) -> None:
        header["sections"][name]["checksum"] = xxhash.xxh3_64_hexdigest(changed)

    return change_header(out, out, checksum)


def test_a_template_of_others(smollm2: Path, tmp_path: Path) -> None:
    """One that is not UTF-8, and one that would write a terminal's title when it refuses."""
    path = with_section(smollm2, tmp_path / "m.edge", "chat_template", lambda _: b"{{ messages }}\xff")
    done = call("chat", path, stdin=b"x")
    assert done.returncode == 1
    assert b"m.edge: the chat template is not UTF-8 text" in done.stderr
    refusal = b"{{ raise_exception('%s') }}" % ESCAPE.encode()
    path = with_section(smollm2, tmp_path / "m.edge", "chat_template", lambda _: refusal)
    done = call("run", path, "--chat", "-p", "x")
    assert b"\\x1b]0;owned\\x07" in done.stderr and b"\x1b" not in done.stderr
    with edgert.load(path, context=64) as model, pytest.raises(edgert.TemplateError) as caught:
        model.chat([{"role": "user", "content": "x"}])
    assert "\x1b" not in str(caught.value)


def test_a_name_of_others(tmp_path: Path) -> None:
    def rename(header: dict[str, dict[str, str]]) -> None:
        header["provenance"]["name"] = f"{ESCAPE}fine\nsha256  0000"

    path = change_header(write_bundle(tmp_path / "m.edge"), tmp_path / "named.edge", rename)
    done = call("inspect", path)
    assert b"\\x1b]0;owned\\x07\\x1b[31mfine sha256  0000" in done.stdout and b"\x1b" not in done.stdout
    assert json.loads(call("inspect", path, "--json").stdout)["provenance"]["name"].startswith(ESCAPE)
    absent = call("inspect", f"{ESCAPE}.edge")
    assert absent.returncode == 1 and b"\x1b" not in absent.stderr
    assert b"\x1b" not in call("inspect", "--tensors=\x1b[31m", "m.edge").stderr


def test_an_answer_does_not_steer_the_terminal(smollm2: Path, tmp_path: Path) -> None:
    """A model whose full stop is the escape character: a terminal gets it made visible, a pipe as it is."""
    def swap(tokenizer: bytes) -> bytes:
        values = json.loads(tokenizer)
        vocabulary, escape = values["model"]["vocab"], "ě"  # GPT-2's letter for byte 0x1b
        vocabulary["."], vocabulary[escape] = vocabulary[escape], vocabulary["."]
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()

    path = with_section(smollm2, tmp_path / "m.edge", "tokenizer", swap)
    command = ["run", path, "-p", "The capital of France is", "-n", 2]
    assert call(*command).stdout == b" Paris\x1b\n"
    assert call(*command, shell=f"> {tmp_path}/answer").returncode == 0
    assert on_a_terminal(*EDGERT, *command) == " Paris\\x1b\n"


@pytest.mark.parametrize("use", [
    lambda model: model.generate("a\ud800"),
    lambda model: model.generate("a", stop=["b", "\udfff"]),
    lambda model: model.generate("a", stop="\udfff"),
    lambda model: model.chat([{"role": "user", "content": "\udc80"}]),
    lambda model: model.chat([{"role": "system", "content": "\udc80"}, {"role": "user", "content": "x"}])],
    ids=["prompt", "stops", "stop", "message", "system"])
def test_half_a_surrogate_pair_is_refused_in_words(model: edgert.Model, use: Callable[[edgert.Model], object]) -> None:
    with pytest.raises(edgert.ModelError, match=r"character \d+ is '.*', half of a surrogate pair"):
        use(model)
