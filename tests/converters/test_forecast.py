"""A forecast for a model on a hub: the layout that its bundle would have, from the beginnings of its files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, run
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.bundle import Bundle

FORECAST = """
import json, sys
from edgert.bundle import Bundle
from edgert.converters.forecast import forecast
from edgert.errors import EdgertError
from edgert.opening import read_text
for spec in sys.argv[1:]:
    try:
        with forecast(spec) as there, Bundle(there.bundle) as bundle:
            header, text = bundle.header, read_text(bundle)
            print(json.dumps({"file": there.file, "to_fetch": there.to_fetch, "to_keep": there.to_keep,
                              "tokens": text.tokenizer.encode("On the river."),
                              "tensors": {name: [t.section, t.offset, t.format] for name, t in header.tensors.items()},
                              "lengths": {name: s.length for name, s in header.sections.items()}}))
    except EdgertError as error:
        print("refused:", error)
"""


def forecasts(hub: FakeHub, folder: Path, *specs: str) -> list[str]:
    """What is said of each, a line."""
    environment = {**hub.environment(folder / "hub"), "EDGERT_MODELS": str(folder / "models")}
    done = run(FORECAST, environment, *specs)
    assert done.returncode == 0, done.stderr
    assert not list((folder / "models").iterdir()), "nothing is left of it"
    return done.stdout.splitlines()


def check(found: dict[str, object], converted: Path) -> None:
    with Bundle(converted) as bundle:
        header = bundle.header
    assert found["tensors"] == {name: [t.section, t.offset, t.format] for name, t in header.tensors.items()}
    assert found["lengths"] == {name: s.length for name, s in header.sections.items()}
    assert abs(int(str(found["to_keep"])) - converted.stat().st_size) < 1 << 16


def bytes_asked(hub: FakeHub) -> int:
    ranges = (re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) for _, _, wanted in hub.requests if wanted)
    return sum(int(found[2]) + 1 - int(found[1]) for found in ranges if found)


def test_of_a_gguf_file(tmp_path: Path, smollm2: Path, smollm2_gguf: Path) -> None:
    content = smollm2_gguf.read_bytes()
    files = {"README.md": b"", "SmolLM2-135M-Instruct.Q8_0.gguf": b"GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf": content,
             "mmproj-Q4_K_M.gguf": b"GGUF", "SmolLM2.Q4_K_M-00001-of-00002.gguf": b"GGUF"}
    with FakeHub(files) as hub:
        there, damaged, missing = forecasts(
            hub, tmp_path, "hf:org/name", "hf:org/name:SmolLM2-135M-Instruct.Q8_0.gguf", "hf:org/name:other.gguf")
        found = json.loads(there)
        assert found["file"] == "SmolLM2-135M-Instruct.Q4_1.gguf" and found["to_fetch"] == len(content)
        assert bytes_asked(hub) < len(content) // 10
        check(found, smollm2)
        name = "SmolLM2-135M-Instruct.Q8_0.gguf"
        assert damaged.startswith(f"refused: hf:org/name:{name}: {name}:")
        assert "has no file of that name" in missing


def test_of_safetensors(tmp_path: Path) -> None:
    folder = give_tokenizer(write_model(tmp_path / "model", num_hidden_layers=3, hidden_size=512, vocab_size=400,
                                        intermediate_size=1500))
    with FakeHub({path.name: path.read_bytes() for path in folder.iterdir()}) as hub:
        found = json.loads(*forecasts(hub, tmp_path, "hf:org/name"))
        assert found["file"] is None and found["to_fetch"] == (folder / "model.safetensors").stat().st_size
        assert bytes_asked(hub) < found["to_fetch"] // 4
    edgert.convert(str(folder), tmp_path / "m.edge")
    check(found, tmp_path / "m.edge")


@pytest.mark.parametrize(("files", "message"), [
    ({"README.md": b""}, "has neither safetensors nor a GGUF file"),
    ({"config.json": b'{"model_type": "unheard-of"}', "tokenizer.json": b"{}", "model.safetensors": b"\2" + bytes(7)
      + b"{}"}, "unheard-of"),
    ({"config.json": b"{}", "model.safetensors": b"\xff" * 9}, "is not a safetensors file"),
])
def test_what_cannot_be_read(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with FakeHub(files) as hub:
        (said,) = forecasts(hub, tmp_path, "hf:org/name")
    assert said.startswith("refused: hf:org/name: ") and message in said and str(tmp_path) not in said


def test_plan_says_what_it_says_of_the_bundle(tmp_path: Path, smollm2: Path, smollm2_gguf: Path) -> None:
    with FakeHub({"smollm2-q4_1.gguf": smollm2_gguf.read_bytes()}) as hub:
        environment = {**hub.environment(tmp_path / "hub"), "EDGERT_MODELS": str(tmp_path / "models")}
        found, known = (json.loads(subprocess.run(
            [sys.executable, "-P", "-m", "edgert", "plan", name, "-m", "180M", "-c", "512", "--json"], env=environment,
            capture_output=True, text=True, timeout=120, check=True).stdout) for name in ("hf:org/name", str(smollm2)))
    assert found["file"] == "smollm2-q4_1.gguf" and "file" not in known
    assert found["weights_bytes"] == known["weights_bytes"]
    assert abs(found["bytes_per_token"] - known["bytes_per_token"]) < 4 << 20  # as the two processes differ
    assert abs(found["smallest_budget"] - known["smallest_budget"]) < 4 << 20
    assert found["device"]["name"] == known["device"]["name"] and found["predicted_decode_tok_s"] > 0
