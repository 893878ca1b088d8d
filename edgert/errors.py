"""Errors meant for the user: one clear sentence that says what is wrong, where, and what to do.

Everything the package raises on bad input, bad files or a bad environment is an `EdgertError`; the command line
prints its message on one line and exits with status 1. Anything else that escapes is a bug.
"""


from .control_characters import one_line


class EdgertError(Exception):
    """Base of all errors meant for the user. As text it is one line, whatever text of others it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class BundleError(EdgertError):
    """A bundle cannot be read: it is not a bundle, or damaged, or of a version that this edgert does not know."""


class SourceError(EdgertError):
    """A model cannot be converted: it is unreadable, damaged, malicious, or of an unknown kind."""


class UnsupportedError(SourceError):
    """A model's file is whole, and edgert does not know what is in it: its family, its quantization, its tokenizer."""


class ClusterError(EdgertError):
    """A Ray cluster cannot be used to convert: Ray is missing, it cannot be reached, or it is gone."""


class ModelError(EdgertError):
    """A model cannot run as asked: a setting is out of range, the context is full, the model was closed, ..."""


class ContextLengthError(ModelError):
    """A prompt does not fit into the context."""


class GrammarError(ModelError):
    """A schema or grammar cannot be followed: it is wrong, not supported, or too complex."""


class SessionError(EdgertError):
    """A saved session cannot be opened or saved: it is damaged, of another model, in use by another program, ..."""


class TemplateError(EdgertError):
    """A chat template is missing or wrong, or does more than a chat template may."""


class DownloadError(EdgertError):
    """A model could not be downloaded, or the file is not the one in the catalogue."""


class EmbeddingError(EdgertError):
    """Embeddings cannot be computed: onnxruntime is missing, a model's folder is not understood, the process that
    computes them has ended, ..."""


class PeerError(EdgertError):
    """llama.cpp cannot be used: as the peer to compare with, or for a model of a family that edgert does not know."""
