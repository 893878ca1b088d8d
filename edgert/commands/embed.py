"""`edgert embed`: vectors of texts."""

import base64
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np

from edgert.embeddings.embedder import Embedder
from edgert.errors import EdgertError, EmbeddingError
from edgert.terminal import show, show_json

from .embedding import open_embedder
from .loading import TEXT

_AT_ONCE = 1024
"""Texts that are sorted by length together, and in memory."""
_HEADER = 128
"""Bytes of the header of a .npy file; NumPy leaves room in it for any number of rows."""


@click.command("embed")
@click.argument("model")
@click.argument("texts", nargs=-1, type=TEXT)
@click.option("-f", "--file", type=click.Path(), metavar="FILE", help="Take each line of this file as a text; - is "
              "standard input, which is also taken where no texts are given.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE.npy",
              help="Write one array of float32 in NumPy's format, a row for each text, in place of lines of JSON.")
@click.option("--format", "form", type=click.Choice(["json", "base64"]), default="json", show_default=True,
              help="Of the lines: an array of numbers, or float32 in little-endian order as a text.")
@click.option("--prompt", metavar="NAME", help="A prompt of the model, like query or document, that goes before texts.")
@click.option("--dimensions", type=click.IntRange(1),
              help="Only so many numbers of each vector, made length 1 again; for models that were made for it.")
@click.option("-t", "--threads", type=click.IntRange(1, 256),
              help="Number of threads that compute.  [default: one per physical core]")
def command(model: str, texts: tuple[str, ...], file: str | None, output: str | None, form: str, prompt: str | None,
            dimensions: int | None, threads: int | None) -> None:
    """Compute the vectors of TEXTS with MODEL, one line of JSON for each.

    MODEL is the name of one that edgert pull fetches (all-minilm-l6-v2), a folder as sentence-transformers writes it
    with an ONNX model in it, or that ONNX file.
    """
    if texts and file:
        raise click.UsageError("give texts or --file, not both")
    if not texts and file is None and sys.stdin.isatty():
        raise click.UsageError("give texts, or a file with --file")
    with ExitStack() as opened:
        lines: Iterator[str] = iter(texts)
        if not texts:
            # What is wrong with the first lines is told before a model is loaded.
            lines = opened.enter_context(_lines(file or "-"))
            lines = chain(list(islice(lines, 1)), lines)
        embedder = opened.enter_context(open_embedder(model, threads))
        write = _shower(form)
        if output:
            write = opened.enter_context(_array(Path(output), dimensions or embedder.dimension))
        count = cut = 0
        while some := list(islice(lines, _AT_ONCE)):
            vectors, shortened = _embedded(embedder, some, prompt, dimensions)
            write(vectors)
            count, cut = count + len(some), cut + shortened
    if not count:
        raise EmbeddingError("there are no texts")
    if cut:
        show(f"edgert: of {cut} of {count} texts only the first {embedder.max_tokens} tokens count", err=True)


def _embedded(embedder: Embedder, texts: list[str], prompt: str | None,
              dimensions: int | None) -> tuple[np.ndarray, int]:
    """The vectors, and how many texts were too long."""
    vectors = np.empty((len(texts), dimensions or embedder.dimension), np.float32)
    cut = 0
    for piece in embedder.pieces(texts, prompt=prompt, dimensions=dimensions):
        vectors[piece.indices] = piece.vectors
        cut += piece.cut
    return vectors, cut


def _shower(form: str) -> Callable[[np.ndarray], None]:
    def write(vectors: np.ndarray) -> None:
        for vector in vectors:
            if form == "base64":
                show_json(base64.b64encode(vector.astype("<f4").tobytes()).decode())
            else:
                show(f"[{', '.join(f'{number:.9g}' for number in vector.tolist())}]")

    return write


@contextmanager
def _lines(file: str) -> Iterator[Iterator[str]]:
    """The lines of a file, read when they are asked for."""
    if file == "-":
        yield _decoded(sys.stdin.buffer, "standard input")
        return
    with Path(file).open("rb") as source:
        yield _decoded(source, file)


def _decoded(source: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(source, 1):
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError:
            raise EdgertError(f"{name}: line {number} is not UTF-8 text") from None


@contextmanager
def _array(path: Path, columns: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A .npy file that takes rows. It appears when all of them are in it."""
    def header(rows: int) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})

    rows = 0
    with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=f".{path.name}.", delete=False) as file:
        def write(vectors: np.ndarray) -> None:
            nonlocal rows
            file.write(vectors.astype("<f4").tobytes())
            rows += len(vectors)

        try:
            header(0)
            assert file.tell() == _HEADER
            yield write
            file.seek(0)
            header(rows)
            assert file.tell() == _HEADER
            file.flush()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path.resolve())
        except BaseException:
            with suppress(FileNotFoundError):
                Path(file.name).unlink()
            raise
