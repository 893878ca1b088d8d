"""Models on the Hugging Face hub, fetched into the hub library's own cache."""

import re
from pathlib import Path

from edgert.errors import DownloadError

PREFIX = "hf:"
_SPEC = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_FILES = ["config.json", "generation_config.json", "tokenizer*", "chat_template.jinja", "model.safetensors",
          "model-*.safetensors", "model.safetensors.index.json"]
_NOT_FILES = ["*/*"]
"""Folders of a repository hold the same weights again, in other formats."""


def fetch_hub(spec: str) -> Path:
    """The folder that holds the files of `hf:org/name` or `hf:org/name@revision`, fetched where they are not there yet.

    Fetches configuration, tokenizer and safetensors, never a pickle. The next call resumes an interrupted download.
    The hub is the one that $HF_ENDPOINT names, or huggingface.co. Raises DownloadError.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DownloadError(f"{spec}: is not the name of a model on the hub: write hf:organisation/name "
                            "or hf:organisation/name@revision")
    from huggingface_hub import errors, snapshot_download  # takes half a second to import, so only where it is used

    try:
        return Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=_FILES,
                                      ignore_patterns=_NOT_FILES))
    except errors.GatedRepoError as error:
        raise DownloadError(f"{spec}: the model is gated: accept its terms on the hub's page, "
                            "then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{spec}: the model has no revision {match['revision']!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(f"{spec}: there is no such model on the hub, or it is private: check the name, "
                            "or run `hf auth login`") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(f"{spec}: the hub cannot be reached and the model is not in its cache: "
                            "check the network and try again") from error
    except Exception as error:  # the hub library's releases differ in whose network errors they let through
        raise DownloadError(f"{spec}: cannot be fetched ({one_line(error)}): run it again to resume") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
