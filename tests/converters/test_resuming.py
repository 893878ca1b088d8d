"""A conversion that was interrupted, killed, or met a full disk goes on from what it kept, and makes the same bytes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import write_model

import edgert
from edgert.bundle import Bundle, writer
from edgert.converters import convert as module
from edgert.converters.convert import convert
from edgert.errors import BundleError, SourceError

SHAPES = {"llama": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 300,
                    "tie_word_embeddings": False},
          "opt": {"model_type": "opt", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                  "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 300},
          "mixtral": {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                      "vocab_size": 100, "num_local_experts": 6, "num_experts_per_tok": 2}}
TEXT = "the quick brown fox jumps over the lazy dog " * 40


@pytest.fixture(autouse=True)
def _kept_after_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0)


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", **SHAPES[request.param])


def model_type(model: Path) -> str:
    return str(json.loads((model / "config.json").read_text())["model_type"])


class Interrupting:
    """Interrupts a conversion after so many parts."""

    def __init__(self, after: int) -> None:
        self.after, self.said, self.seen = after, [], 0  # type: ignore[var-annotated]

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen += 1
        if self.seen > self.after:
            raise KeyboardInterrupt


def interrupted(model: Path, out: Path, after: int, **options: object) -> list[str]:
    """What is said by a conversion that is interrupted, if it lasts long enough."""
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        convert(str(model), out, progress=Interrupting(after), say=said.append, **options)  # type: ignore[arg-type]
    return said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("m.edge*"))


KEPT = ["m.edge.part", "m.edge.part.journal"]


def parts_of(model: Path, out: Path, **options: object) -> int:
    """How many parts a whole conversion reports."""
    seen: list[int] = []
    convert(str(model), out, progress=lambda *_: seen.append(0), **options)  # type: ignore[arg-type]
    return len(seen)


@pytest.mark.parametrize("calibrate", [True, False, "predictors"])
def test_at_every_part(model: Path, tmp_path: Path, calibrate: bool | str) -> None:
    """Interrupted once, at each part in turn: the rest is done, and the bundle is to the byte that of one go."""
    (text := tmp_path / "text.txt").write_text(TEXT)
    options = {"calibrate": bool(calibrate), "texts": [text] if calibrate else []}
    if calibrate == "predictors":
        if model_type(model) != "opt":
            pytest.skip("no zeros")
        options["predictors"] = True
    parts = parts_of(model, tmp_path / "whole.edge", **options)
    went_on = 0
    for after in range(0, parts - 1, 5 if calibrate else 3):
        interrupted(model, tmp_path / "m.edge", after, **options)
        kept = names(tmp_path) == KEPT
        assert kept or names(tmp_path) == []
        if kept:
            with pytest.raises(BundleError, match="interrupted"):
                Bundle(tmp_path / "m.edge.part")
        said: list[str] = []
        convert(str(model), tmp_path / "m.edge", say=said.append, **options)  # type: ignore[arg-type]
        assert len(said) == kept and all("going on" in sentence for sentence in said)
        went_on += kept
        assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()
        assert names(tmp_path) == ["m.edge"]
        (tmp_path / "m.edge").unlink()
    assert went_on > 3


def test_again_and_again(model: Path, tmp_path: Path) -> None:
    """Each time only a little is done, and nothing twice: what is done grows."""
    parts = parts_of(model, tmp_path / "whole.edge")
    shares: list[int] = []
    for _ in range(parts):
        said: list[str] = []
        try:
            convert(str(model), tmp_path / "m.edge", progress=Interrupting(25), say=said.append)
            break
        except KeyboardInterrupt:
            shares += [int(sentence.split("%")[0].split()[-1]) for sentence in said]
    assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()
    assert shares and shares == sorted(set(shares))


@pytest.mark.parametrize("change", ["weights", "preset", "calibrate", "texts", "version"])
def test_what_has_changed_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model, out = write_model(tmp_path / "model", **SHAPES["llama"]), tmp_path / "m.edge"
    (text := tmp_path / "text.txt").write_text(TEXT)
    interrupted(model, out, parts_of(model, tmp_path / "whole.edge", texts=[text]) - 5, texts=[text])
    assert names(tmp_path) == KEPT
    options: dict[str, object] = {"texts": [text]}
    if change == "weights":
        write_model(model, seed=1, **SHAPES["llama"])
    elif change == "preset":
        options["preset_name"] = "q6"
    elif change == "calibrate":
        options = {"calibrate": False}
    elif change == "texts":
        text.write_text(TEXT[::-1])
    else:
        monkeypatch.setattr(edgert, "__version__", "0.0.0")
    said: list[str] = []
    convert(str(model), out, say=said.append, **options)  # type: ignore[arg-type]
    convert(str(model), tmp_path / "other.edge", **options)  # type: ignore[arg-type]
    assert len(said) == 1 and "starting again" in said[0] and out.read_bytes() == (tmp_path / "other.edge").read_bytes()
    assert names(tmp_path) == ["m.edge"]


def damage_start(path: Path) -> None:
    """Of the first section; what comes before is not read."""
    with path.open("r+b") as file:
        content = file.read()
        at = next(i for i in range(4096, len(content)) if content[i])
        file.seek(at)
        file.write(bytes([content[at] ^ 1]))


@pytest.mark.parametrize("damage", [
    lambda part: damage_start(part),
    lambda part: part.write_bytes(b""),
    lambda part: part.with_name("m.edge.part.journal").write_bytes(b"EDGERT JOURNAL\r\nPK"),
    lambda part: part.with_name("m.edge.part.journal").unlink(),
    lambda part: part.unlink()], ids=["part", "empty", "journal", "no journal", "no part"])
def test_what_is_damaged_starts_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    model, out = write_model(tmp_path / "model", **SHAPES["llama"]), tmp_path / "m.edge"
    interrupted(model, out, parts_of(model, tmp_path / "whole.edge") - 3)
    damage(tmp_path / "m.edge.part")
    said: list[str] = []
    convert(str(model), out, say=said.append)
    assert all("starting again" in sentence for sentence in said)
    assert out.read_bytes() == (tmp_path / "whole.edge").read_bytes() and names(tmp_path) == ["m.edge"]


def test_a_source_at_fault_keeps_nothing(tmp_path: Path) -> None:
    """It has changed while it was read."""
    model = write_model(tmp_path / "model", **SHAPES["llama"])

    def progress(what: str, done: int, total: int) -> None:
        if done > total // 2:
            (model / "model.safetensors").write_bytes(bytes((model / "model.safetensors").stat().st_size))

    with pytest.raises(SourceError, match="has changed"):
        convert(str(model), tmp_path / "m.edge", progress=progress)
    assert names(tmp_path) == []


@pytest.mark.parametrize("journal", [True, False])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: bool) -> None:
    """While the bundle is written, on a file system that takes no room in advance: what was done is kept. While the
    journal is: it goes on without."""
    model, out = write_model(tmp_path / "model", **SHAPES["llama"]), tmp_path / "m.edge"
    convert(str(model), tmp_path / "whole.edge")
    calls, real = [0], os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        calls[0] += 1
        if calls[0] > 35:
            raise OSError(errno.ENOSPC, "no space")
        return real(handle, data, offset)

    def no_room(self: object, entry: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        if journal:
            patch.setattr(writer.Journal, "write", no_room)
            convert(str(model), out)
        else:
            patch.setattr(writer.os, "pwrite", full)
            with pytest.raises(BundleError, match="the disk is full"):
                convert(str(model), out)
            assert names(tmp_path) == KEPT
    said: list[str] = []
    convert(str(model), out, say=said.append)
    assert len(said) == (not journal) and out.read_bytes() == (tmp_path / "whole.edge").read_bytes()
    assert names(tmp_path) == ["m.edge"]


KILLED = """
import os, sys
from edgert.cli import main
from edgert.converters import convert as module
module.KEEP_S = 0
source, out, reference = sys.argv[1:]
module.convert(source, reference)  # everything is imported now
sys.argv[1:] = ["convert", source, out]
print("ready", flush=True)
for line in sys.stdin:
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main()
        sys.exit()
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL, again and again, until it is done."""
    model = write_model(tmp_path / "model", hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                        vocab_size=500)
    out, reference, rng = tmp_path / "m.edge", tmp_path / "whole.edge", random.Random(0)
    with subprocess.Popen([sys.executable, "-c", KILLED, *map(str, [model, out, reference])], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def ask() -> int:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        killed = 0
        for turn in range(30):
            child = ask()
            time.sleep(0.1 + 0.2 * rng.random() + 0.1 * turn)
            os.kill(child, signal.SIGKILL)
            if ask() == 0:
                break
            killed += 1
            if not out.exists() and (part := tmp_path / "m.edge.part").exists():
                with pytest.raises(BundleError):
                    Bundle(part)
        process.stdin.close()
        errors = process.stderr.read() if process.stderr else ""
    assert killed and out.read_bytes() == reference.read_bytes()
    assert "Traceback" not in errors


SLOW = """
import os, time
from edgert.cli import main
from edgert.converters import convert as module
module.KEEP_S = 0
class Slow(module.BundleWriter):
    def keep(self, state, arrays):
        super().keep(state, arrays)
        time.sleep(float(os.environ["PAUSE"]))
module.BundleWriter = Slow
main()
"""


def test_what_the_command_says(tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "model", **SHAPES["llama"]), tmp_path / "m.edge"
    command = [sys.executable, "-c", SLOW, "convert", str(model), str(out)]
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env={**os.environ, "PAUSE": "60"}) as process:
        while not (tmp_path / "m.edge.part.journal").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert said == f"{out}: what is done is kept beside it; the same command goes on from there\n"
    done = subprocess.run(command, text=True, capture_output=True, check=True, env={**os.environ, "PAUSE": "0"})
    assert done.stderr.startswith(f"{out}: going on with what an interrupted conversion has left: ")
    assert done.stderr.count("\n") == 1 and names(tmp_path) == ["m.edge"]
