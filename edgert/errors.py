"""Errors meant for the user: one clear sentence that says what is wrong, where, and what to do.

Everything the package raises on bad input, bad files or a bad environment is an `EdgertError`; the command line
prints its message on one line and exits with status 1. Anything else that escapes is a bug.
"""


from .control_characters import one_line


class EdgertError(Exception):
    """Root of all errors meant for the user. As text it is one line, whatever texts of others it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class BundleError(EdgertError):
    """A bundle cannot be read: not a bundle, damaged, or of a version this edgert does not know."""


class SourceError(EdgertError):
    """A model to convert cannot be used: unreadable, damaged, hostile, or of an unknown kind."""


class ModelError(EdgertError):
    """A model cannot run as asked: the context is full, the values are not finite, or it has been closed."""


class TemplateError(EdgertError):
    """A chat template is missing, wrong, or does more than a chat template may."""


class DownloadError(EdgertError):
    """A model could not be fetched, or what came is not what the catalogue promises."""


class PeerError(EdgertError):
    """llama.cpp, asked for as a peer to measure against, cannot be used."""
