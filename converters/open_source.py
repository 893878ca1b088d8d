"""From what a user names to a `Source`."""

from dataclasses import replace
from pathlib import Path

from edgert.download import ON_HUB
from edgert.errors import SourceError

from .gguf_source import open_gguf
from .hub import fetch_hub
from .onnx_source import has_onnx, open_onnx
from .safetensors_source import PICKLED, open_safetensors, pickle_refused
from .source import Source
from .source_file import Reading, unheard


def open_source(spec: str, *, hashed: bool = True, reading: Reading = unheard) -> Source:
    """The model that `spec` names: `hf:organisation/name[@revision][:file.gguf]`, a folder, a GGUF or an ONNX file.

    hashed: whether files are read once for their hashes; reading: told how far that has come. Raises SourceError where
    it cannot be used, DownloadError where it cannot be fetched.
    """
    if spec.startswith(ON_HUB):
        fetched = fetch_hub(spec)
        source = open_source(str(fetched), reading=reading)
        revision = fetched.name if fetched.is_dir() else fetched.parent.name
        return replace(source, provenance={**source.provenance, "source": spec, "revision": revision})
    path = Path(spec)
    try:
        if path.is_dir():
            return (open_onnx if has_onnx(path) else open_safetensors)(path, hashed=hashed, reading=reading)
        if not path.is_file():
            raise SourceError(f"{spec}: no such file or folder (a model on the hub is written hf:organisation/name)")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SourceError(f"{spec}: cannot be read: {error.strerror}") from error
    if magic == b"GGUF":
        return open_gguf(path, hashed=hashed, reading=reading)
    if path.suffix in PICKLED or magic[:1] == b"\x80":
        raise pickle_refused(path)
    if path.suffix == ".onnx":
        return open_onnx(path, hashed=hashed, reading=reading)
    if path.suffix == ".safetensors":
        raise SourceError(f"{spec}: holds weights alone: give the folder that it is in, "
                          "with config.json and tokenizer.json")
    raise SourceError(f"{spec}: is not a model that edgert reads: give a GGUF or an ONNX file, a folder with "
                      "safetensors or ONNX files, or hf:organisation/name")
