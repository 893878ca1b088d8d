"""Models on the Hugging Face hub, fetched into the hub library's own cache."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgert.download import ON_HUB
from edgert.errors import DownloadError, EdgertError

from .gguf_parts import parts_of
from .hub_choice import best_gguf

_SPEC = re.compile(rf"{ON_HUB}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:]+\.gguf))?")
TEXTS = ["config.json", "generation_config.json", "tokenizer*", "chat_template.jinja", "model.safetensors.index.json"]
"""All but the weights of a model in Hugging Face's layout."""
WEIGHTS = ["model.safetensors", "model-*.safetensors"]
NOT_FILES = ["*/*"]
"""Folders of a repository hold the same weights again, in other formats."""


@dataclass(frozen=True)
class Named:
    """A model on the hub. file: a GGUF file of it; None for its safetensors."""

    spec: str
    repo: str
    revision: str | None
    file: str | None


def parse(spec: str) -> Named:
    """`hf:org/name`, with `@revision` and `:file.gguf` where they are given. Raises DownloadError."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DownloadError(f"{spec}: is not the name of a model on the hub: write hf:organisation/name, "
                            "hf:organisation/name@revision or hf:organisation/name:file.gguf")
    return Named(spec, match["repo"], match["revision"], match["file"])


def fetch_hub(spec: str) -> Path:
    """The folder that holds the files of a model, or its GGUF file where that is named or there are no safetensors,
    fetched where they are not there yet.

    Fetches configuration, tokenizer and safetensors, never a pickle. The next call resumes an interrupted download.
    The hub is the one that $HF_ENDPOINT names, or huggingface.co. Raises DownloadError.
    """
    named = parse(spec)
    with refusals(named):
        from huggingface_hub import hf_hub_download, snapshot_download  # half a second, so only where it is used

        def gguf(file: str, revision: str | None) -> Path:
            fetched = [hf_hub_download(named.repo, str(part), revision=revision)
                       for part in parts_of(PurePosixPath(file))]
            return Path(fetched[0])

        if named.file is not None:
            return gguf(named.file, named.revision)
        folder = Path(snapshot_download(named.repo, revision=named.revision, allow_patterns=[*TEXTS, *WEIGHTS],
                                        ignore_patterns=NOT_FILES))
        if any(folder.glob("*.safetensors")):
            return folder
        revision, sizes = files_of(named)
        file = best_gguf(spec, sizes, shutil.disk_usage(folder).free)
        return gguf(file, revision)


def files_of(named: Named) -> tuple[str | None, dict[str, int]]:
    """The commit that a model is at, and bytes by name of all its files. Raises what the hub's library does."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(named.repo, revision=named.revision or "main", files_metadata=True)
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or []}


@contextmanager
def refusals(named: Named) -> Iterator[None]:
    """Turns what the hub and its library raise into DownloadError."""
    from huggingface_hub import errors

    spec = named.spec
    try:
        yield
    except EdgertError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(f"{spec}: the model is gated: accept its terms on the hub's page, "
                            "then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{spec}: the model has no revision {named.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(f"{spec}: there is no such model on the hub, or it is private: check the name, "
                            "or run `hf auth login`") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(f"{spec}: the hub cannot be reached and the model is not in its cache: "
                            "check the network and try again") from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{spec}: the model has no file of that name; its page on the hub lists them") from error
    except Exception as error:  # the hub library's releases differ in whose network errors they let through
        raise DownloadError(f"{spec}: cannot be fetched ({one_line(error)}): run it again to resume") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
