"""From what a user names to a `Source`."""

from dataclasses import replace
from pathlib import Path

from edgert.errors import SourceError

from .gguf_source import open_gguf
from .hub import PREFIX, fetch_hub
from .safetensors_source import PICKLED, open_safetensors, pickle_refused
from .source import Source


def open_source(spec: str) -> Source:
    """The model that `spec` names: `hf:organisation/name[@revision]`, a folder, or a GGUF file.

    Raises SourceError where it cannot be used, DownloadError where it cannot be fetched.
    """
    if spec.startswith(PREFIX):
        folder = fetch_hub(spec)
        source = open_safetensors(folder)
        return replace(source, provenance={**source.provenance, "source": spec, "revision": folder.name})
    path = Path(spec)
    try:
        if path.is_dir():
            return open_safetensors(path)
        if not path.is_file():
            raise SourceError(f"{spec}: no such file or folder (a model on the hub is written hf:organisation/name)")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SourceError(f"{spec}: cannot be read: {error.strerror}") from error
    if magic == b"GGUF":
        return open_gguf(path)
    if path.suffix in PICKLED or magic[:1] == b"\x80":
        raise pickle_refused(path)
    if path.suffix == ".safetensors":
        raise SourceError(f"{spec}: holds weights alone: give the folder that it is in, "
                          "with config.json and tokenizer.json")
    raise SourceError(f"{spec}: is not a model that edgert reads: give a GGUF file, a folder with safetensors, "
                      "or hf:organisation/name")
