"""A machine where models can be chosen: a folder for them, a catalogue of tiny ones, and a hub that has those."""

import hashlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fake_hub import COMMIT, FakeHub
from gguf import GGUFWriter
from served import Server
from tokenizers import pre_tokenizers

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
DEFAULT, OTHER = "smollm2-135m", "other"
_CATALOGUE = """
from edgert.models import catalog
entries = {{name: catalog.Entry.from_toml(name, values) for name, values in {values!r}.items()}}
catalog.load = lambda: entries
"""
"""What every Python of the machine runs first: the server, and the processes that make models for it."""
_HIDDEN, _INNER, _VOCABULARY, _CONTEXT = 32, 64, 259, 512


def write_gguf(path: Path, seed: int = 0) -> Path:
    """A model of random weights, with bytes as tokens."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    random, writer = np.random.default_rng(seed), GGUFWriter(path, "llama")
    for name, value in {"block_count": 1, "context_length": _CONTEXT, "embedding_length": _HIDDEN,
                        "feed_forward_length": _INNER, "attention.head_count": 2, "attention.head_count_kv": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, *[1] * 257])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    block = {"attn_norm": (_HIDDEN,), "attn_q": (_HIDDEN, _HIDDEN), "attn_k": (_HIDDEN // 2, _HIDDEN),
             "attn_v": (_HIDDEN // 2, _HIDDEN), "attn_output": (_HIDDEN, _HIDDEN), "ffn_norm": (_HIDDEN,),
             "ffn_gate": (_INNER, _HIDDEN), "ffn_up": (_INNER, _HIDDEN), "ffn_down": (_HIDDEN, _INNER)}
    for name, shape in {"token_embd": (_VOCABULARY, _HIDDEN), "output_norm": (_HIDDEN,),
                        **{f"blk.0.{name}": shape for name, shape in block.items()}}.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class SlowHub(FakeHub):
    """Sends the first half of a file, and the other when `go_on` is set, as it is in the beginning."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.go_on = threading.Event()
        self.go_on.set()

    def send_file(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        if request.command != "GET":
            super().send_file(request, content)
            return
        request.send_response(200)
        for name, value in {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT,
                            "Content-Length": len(content)}.items():
            request.send_header(name, str(value))
        request.end_headers()
        try:
            request.wfile.write(content[:len(content) // 2])
            request.wfile.flush()
            self.go_on.wait(60)
            request.wfile.write(content[len(content) // 2:])
        except OSError:  # whoever asked has gone
            request.close_connection = True


class Machine:
    """models: the folder. hub: where the catalogue's models can be fetched. Nothing else can be reached."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models = folder, folder / "models"
        files = {name: write_gguf(folder / f"{name}.gguf", seed).read_bytes()
                 for seed, name in enumerate((DEFAULT, OTHER))}
        self.hub = SlowHub({f"{name}.gguf": content for name, content in files.items()})
        self.sizes = {name: len(content) for name, content in files.items()}
        first = folder / "python"
        first.mkdir()
        (first / "sitecustomize.py").write_text(_CATALOGUE.format(values={name: {
            "description": f"{name}, for tests", "file": f"{name}.gguf", "size": len(content), "license": "MIT",
            "sha256": hashlib.sha256(content).hexdigest(), "architecture": "llama", "wheels": [f"{name}==1"],
            "member": "none", "hub": {"repo": "org/name", "file": f"{name}.gguf", "revision": COMMIT},
        } for name, content in files.items()}))
        self.environment = {
            **self.hub.environment(folder / "hf"), "EDGERT_MODELS": str(self.models), "PYTHONPATH": str(first),
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(first), "BROWSER": "true"}
        self._started = 0

    def web(self, bundle: Path | None = None, *options: str, command: str = "web") -> Server:
        """`edgert web`, whose page nobody has opened yet, or another command that serves."""
        self._started += 1
        return Server(bundle, *options, command=command, environment=self.environment,
                      errors=self.folder / f"errors{self._started}")

    def left(self) -> list[str]:
        """What stands in the models' folder, but for files that processes lock each other out with."""
        return sorted(path.name for path in self.models.iterdir() if not path.name.endswith(".lock"))


def until(server: Server, holds: Callable[[dict[str, Any]], object], seconds: float = 60) -> dict[str, Any]:
    """The server's status, as soon as something holds for it."""
    end = time.monotonic() + seconds
    while not holds(status := server.status()):
        assert time.monotonic() < end and server.process.poll() is None, (status, server.said)
        time.sleep(0.02)
    return status


def settled(server: Server) -> dict[str, Any]:
    """The server's status when no model is on its way any more."""
    return until(server, lambda status: status["chooser"]["choosing"] is None and status["state"] != "loading")


def doing(server: Server, what: str) -> dict[str, Any]:
    """What the server says of the model that is on its way, once that is being fetched, say."""
    choosing: dict[str, Any] = until(server, lambda status: (status["chooser"]["choosing"] or {}).get("doing") == what)[
        "chooser"]["choosing"]
    return choosing


def makers(server: Server) -> list[psutil.Process]:
    """The processes that make a model for a server."""
    return [child for child in server.serving.children(recursive=True) if "edgert.apps.making" in child.cmdline()]
