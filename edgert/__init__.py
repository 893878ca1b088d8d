"""edgert: runs language models that are larger than the memory they may use.

    import edgert
    with edgert.load("model.edge") as model:
        for piece in model.chat([{"role": "user", "content": "Hello!"}]):
            print(piece.text, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any

from .errors import (
    BundleError,
    ContextLengthError,
    DownloadError,
    EdgertError,
    EmbeddingError,
    GrammarError,
    ModelError,
    PeerError,
    SessionError,
    SourceError,
    TemplateError,
)

if TYPE_CHECKING:
    from .answering import LanguageModel
    from .converters.convert import convert
    from .download import pull
    from .embeddings.embedder import Embedder
    from .generation.generation import Generation, Piece, Statistics
    from .generation.scoring import Scores
    from .generation.tool_calls import CallDelta, ToolCall
    from .loading import load
    from .model import Model
    from .sizes import parse_size

__version__ = "0.1.0"
__all__ = ["BundleError", "CallDelta", "ContextLengthError", "DownloadError", "EdgertError", "Embedder",
           "EmbeddingError", "Generation", "GrammarError", "LanguageModel", "Model", "ModelError", "PeerError", "Piece",
           "Scores", "SessionError", "SourceError", "Statistics", "TemplateError", "ToolCall", "convert", "load",
           "parse_size", "pull"]

_LAZY = {"convert": "converters.convert", "load": "loading", "parse_size": "sizes", "pull": "download",
         "Embedder": "embeddings.embedder", "LanguageModel": "answering", "Model": "model",
         "Generation": "generation.generation", "Piece": "generation.generation",
         "Statistics": "generation.generation", "Scores": "generation.scoring",
         "CallDelta": "generation.tool_calls", "ToolCall": "generation.tool_calls"}


def __getattr__(name: str) -> Any:
    """Imports a name of the API when it is first used: `edgert --help` needs none of them."""
    if name in _LAZY:
        import importlib
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
