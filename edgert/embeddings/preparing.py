"""A model as the process of embeddings maps it: optimized once, its weights in a file beside it, in the cache.

onnxruntime computes what depends on nothing but weights while it loads a model, such as the floats of 8-bit weights: in
memory, each time. Or, where it optimizes nothing, for each batch anew. Written to a file those weights are pages of the
page cache, and of a table of embeddings only the rows that are needed.

    python -m edgert.embeddings.preparing ONNX TARGET

optimizes and writes; what goes wrong is told on standard output.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgert.errors import EdgertError, EmbeddingError
from edgert.kernels.native import cache_folder
from edgert.locking import making

from .child import Child, environment
from .recipe import Recipe

_FORMAT = 1
"""Of what is prepared; another one is made anew."""
_MARGIN = 2 << 20
"""Bytes: a process is not always of the same size."""


@dataclass(frozen=True)
class Prepared:
    """onnx: the optimized model. memory: bytes that the process of embeddings takes, at most. dimension: of vectors."""

    onnx: Path
    memory: int
    dimension: int


def prepare(model: Path, recipe: Recipe, threads: int, beginning: Callable[[], object]) -> Prepared:
    """Prepare a model, unless that was done before: some seconds, and the memory that onnxruntime usually takes.

    beginning: called before. Raises EmbeddingError.
    """
    folder = cache_folder().parent / "embeddings" / f"{recipe.name}-{_key(recipe)}"
    state = _state(recipe)
    try:
        if (there := _read(folder, state)) is not None:
            return there
        folder.parent.mkdir(parents=True, exist_ok=True)
        with making(folder, beginning):
            if (there := _read(folder, state)) is None:
                beginning()
                there = _make(model, recipe, threads, folder, state)
            return there
    except OSError as error:
        raise EmbeddingError(f"{recipe.name}: cannot be prepared in {folder.parent}: {error.strerror or error}; "
                             "EDGERT_CACHE names another folder") from None


def _key(recipe: Recipe) -> str:
    return hashlib.sha256(os.fsencode(recipe.onnx.resolve())).hexdigest()[:12]


def _state(recipe: Recipe) -> dict[str, Any]:
    """What a prepared model depends on."""
    import importlib.metadata  # some MB that a server has to spare once it has started

    files = [path.stat() for path in (recipe.onnx, recipe.tokenizer)]
    try:
        version = importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:  # a build of another name
        version = ""
    return {"format": _FORMAT, "files": [[file.st_size, file.st_mtime_ns] for file in files],
            "onnxruntime": version, "max_tokens": recipe.max_tokens, "pooling": list(recipe.pooling)}


def _read(folder: Path, state: dict[str, Any]) -> Prepared | None:
    try:
        values = json.loads((folder / "prepared.json").read_text())
        if values["state"] == state:
            return Prepared(folder / "model.onnx", values["memory"], values["dimension"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _make(model: Path, recipe: Recipe, threads: int, folder: Path, state: dict[str, Any]) -> Prepared:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        target = partial / "model.onnx"
        _write(recipe, target)
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        with Child(model, recipe.name, target, threads, 600) as child:
            measured, _ = child.ask({"measure": True})
        made = Prepared(folder / "model.onnx", measured["peak"] + _MARGIN, measured["dimension"])
        (partial / "prepared.json").write_text(json.dumps({**asdict(made), "onnx": None, "state": state}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return made
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(recipe: Recipe, target: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "edgert.embeddings.preparing", recipe.onnx, target],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          errors="replace", check=False, env=environment())
    if done.stdout:
        raise EmbeddingError(done.stdout)
    if done.returncode or not target.is_file():
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise EmbeddingError(f"{recipe.name}: the process that prepares it for onnxruntime {how}; is there enough "
                             f"memory, and room in {target.parent.parent}?")


def main(onnx: str, target: str) -> None:
    """Optimize a model and write it."""
    try:
        from onnxruntime import GraphOptimizationLevel

        from .computing import session
        session(Path(onnx), 1, GraphOptimizationLevel.ORT_ENABLE_EXTENDED, write=Path(target))
    except EdgertError as error:
        print(error, end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
