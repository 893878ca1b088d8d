"""`fetch_hub` against a hub on loopback."""

from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, run

from edgert.converters.hub import fetch_hub
from edgert.errors import DownloadError

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100_000, "tokenizer.json": b"{}",
         "tokenizer_config.json": b"{}", "generation_config.json": b"{}", "chat_template.jinja": b"",
         "pytorch_model.bin": b"pickle", "README.md": b"", "onnx/model.safetensors": b"",
         "consolidated.safetensors": b""}
FETCH = """
import sys
from edgert.converters.hub import fetch_hub
from edgert.errors import DownloadError
try:
    print(fetch_hub({spec!r}))
except DownloadError as error:
    print("refused:", error)
"""


def fetch(spec: str, environment: dict[str, str]) -> str:
    done = run(FETCH.format(spec=spec), environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("spec", ["hf:org/name", f"hf:org/name@{COMMIT}"])
def test_fetch(tmp_path: Path, spec: str) -> None:
    with FakeHub(FILES) as hub:
        folder = Path(fetch(spec, hub.environment(tmp_path)))
        assert folder.name == COMMIT
        assert {path.name for path in folder.iterdir()} == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
            "chat_template.jinja"}
        assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        environment = hub.environment(tmp_path)
    assert fetch(spec, environment) == str(folder), "from the cache, when the hub is gone"


@pytest.mark.parametrize(("spec", "file"), [
    ("hf:org/name:b.Q8_0.gguf", "b.Q8_0.gguf"), ("hf:org/name", "a.q4_k_m.gguf"),
    (f"hf:org/name@{COMMIT}", "a.q4_k_m.gguf")])
def test_gguf_files(tmp_path: Path, spec: str, file: str) -> None:
    files = {"b.Q8_0.gguf": b"8", "a.q4_k_m.gguf": b"4", "mmproj-q4_k_m.gguf": b"", "config.json": b"{}",
             "a.Q4_K_M-00001-of-00002.gguf": b"", "a.IQ2_M.gguf": b"2"}
    with FakeHub(files) as hub:
        path = Path(fetch(spec, hub.environment(tmp_path)))
    assert path.name == file and path.read_bytes() == files[file] and path.parent.name == COMMIT


def test_resume(tmp_path: Path) -> None:
    content = bytes(range(256)) * (96 << 10)  # the hub library writes, and resumes, in chunks of 10 MB
    with FakeHub({"model.safetensors": content}, cut=1) as hub:
        folder = Path(fetch("hf:org/name", hub.environment(tmp_path)))
        assert (folder / "model.safetensors").read_bytes() == content
        assert any(wanted not in (None, "bytes=0-") for _, _, wanted in hub.requests)


@pytest.mark.parametrize(("spec", "message"), [
    ("hf:org/other", "there is no such model on the hub"),
    ("hf:org/gated", "the model is gated: accept its terms"),
    ("hf:org/name@no-such-branch", "the model has no revision 'no-such-branch'"),
    ("hf:org/name:other.gguf", "the model has no file of that name"),
])
def test_refused(tmp_path: Path, spec: str, message: str) -> None:
    with FakeHub(FILES) as hub:
        said = fetch(spec, hub.environment(tmp_path))
    assert said.startswith(f"refused: {spec}: {message}")
    assert "\n" not in said


def test_no_network(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        environment = hub.environment(tmp_path)
    assert "the hub cannot be reached" in fetch("hf:org/name", environment)


@pytest.mark.parametrize("spec", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a/b@c d", "hf:../x\n", "hf:a b/c"])
def test_not_a_name(spec: str) -> None:
    with pytest.raises(DownloadError, match="is not the name of a model on the hub"):
        fetch_hub(spec)


def test_name_that_the_hub_library_refuses() -> None:
    with pytest.raises(DownloadError, match="cannot be fetched"):
        fetch_hub("hf:a/--b..")
