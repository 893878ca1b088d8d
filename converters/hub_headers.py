"""What stands before the weights of a model on the Hugging Face hub, fetched with range requests, for a forecast."""

import shutil
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from edgert.errors import DownloadError, SourceError
from edgert.models.rope import GGUF_TENSORS

from .gguf_header import read_header
from .hub import NOT_FILES, TEXTS, WEIGHTS, Named, files_of, refusals
from .hub_choice import best_gguf

_PIECE = 1 << 20
_MOST_HEADER = 256 << 20
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Fetched:
    """path: the folder or GGUF file that stands for the model. bytes: what all of its files have, to be fetched still.
    file: the GGUF file's name on the hub, None for safetensors."""

    path: Path
    bytes: int
    file: str | None


def fetch_headers(named: Named, folder: Path) -> Fetched:
    """Files in `folder` like those of a model on the hub, as long as they are, but without weights, which are holes.

    Where a model has safetensors, these; otherwise the GGUF file that is named or, if none is, the one of those with
    room on this disk that comes first (hub_choice.py). Raises DownloadError.
    """
    with refusals(named):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import filter_repo_objects

        commit, sizes = files_of(named)
        texts, weights = (list(filter_repo_objects(sizes, allow_patterns=patterns, ignore_patterns=NOT_FILES))
                          for patterns in (TEXTS, WEIGHTS))
        if named.file is not None or not weights:
            file = named.file or best_gguf(named.spec, sizes, shutil.disk_usage(folder).free)
            path = folder / Path(file).name
            return Fetched(path, _fetch_gguf(_Hollow(named, commit, file, path)), file)
        for name in texts:
            shutil.copyfile(hf_hub_download(named.repo, name, revision=commit), folder / name)
        total = sum(_fetch_safetensors(_Hollow(named, commit, name, folder / name)) for name in weights)
    return Fetched(folder, total, None)


class _Hollow:
    """A file like one on the hub, as long, but with nothing in it except for what is fetched."""

    def __init__(self, named: Named, revision: str | None, name: str, path: Path) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(named.repo, name, revision=revision)
        found = get_hf_file_metadata(url)
        if not found.size:
            raise DownloadError(f"{named.spec}: the hub does not say how long {name} is")
        self.path, self.size, self._url = path, found.size, found.location
        # A storage server elsewhere has its own signature in the address, and is not to see the user's token.
        self._headers = build_hf_headers() if found.location == url else {}
        self.start = 0
        """Bytes that are there from the beginning on."""
        with path.open("wb") as file:
            file.truncate(self.size)
        self.have(_PIECE)

    def have(self, start: int) -> None:
        """Have at least so many bytes from the beginning on, if the file is that long."""
        end = min(max(start, self.start), self.size)
        self.fetch(self.start, end)
        self.start = end

    def fetch(self, start: int, end: int) -> None:
        if start == end:
            return
        request = urllib.request.Request(self._url, headers={**self._headers, "Range": f"bytes={start}-{end - 1}"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if answer.status != HTTPStatus.PARTIAL_CONTENT:  # a server without ranges sends all
                answer.read(start)
            content: bytes = answer.read(end - start)
        if len(content) != end - start:
            raise OSError(f"{end - start} bytes were asked for, {len(content)} came")
        with self.path.open("r+b") as file:
            file.seek(start)
            file.write(content)


def _fetch_gguf(hollow: _Hollow) -> int:
    """Fetch the header, and the tensors that belong to the hyper-parameters; the file's length."""
    while True:
        try:
            header = read_header(hollow.path)
            first = min((info.offset for info in header.tensors.values()), default=0)
        except SourceError:
            if hollow.start >= min(hollow.size, _MOST_HEADER):
                raise
            first = 2 * hollow.start
        if first <= hollow.start:
            break
        hollow.have(first)
    for name in header.tensors.keys() & set(GGUF_TENSORS):
        factors = header.tensors[name]
        hollow.fetch(factors.offset, factors.offset + factors.size)
    return hollow.size


def _fetch_safetensors(hollow: _Hollow) -> int:
    """Fetch the header; the file's length."""
    with hollow.path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(hollow.size, _MOST_HEADER):
        raise SourceError(f"{hollow.path.name}: is not a safetensors file")
    hollow.have(8 + length)
    return hollow.size
