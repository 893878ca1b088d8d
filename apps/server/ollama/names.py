"""Names of models: Ollama's are NAME:TAG, with the tag `latest` where none is given; a bundle's is that of its file."""

from collections.abc import Iterable

from ..models import Choice

_LATEST = ":latest"


def shown(name: str) -> str:
    """A bundle's name as Ollama's clients expect it."""
    return name if ":" in name else name + _LATEST


def plain(name: str) -> str:
    """A name without what all spellings of it have in common."""
    return name.lower().removesuffix(_LATEST).replace(":", "-")


def find(asked: str, choices: Iterable[Choice]) -> Choice | None:
    """The model that a name means: `smollm2-135m`, `smollm2-135m:latest` and `smollm2:135m` are the same, in capitals
    too. The first one where several have that name; None where none has it."""
    return next((choice for choice in choices if plain(choice.name) == plain(asked)), None)
