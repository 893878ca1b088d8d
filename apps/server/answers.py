"""What chat and plain completions have in common: who answers, what an answer used, and how one is asked for."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from edgert import Generation, Model, Piece, __version__

from .requests import Sampled

R = TypeVar("R", bound=Sampled)


@dataclass
class Answering(Generic[R]):
    """One request, and the model that answers it. kind: the prefix of its id. object: what OpenAI calls the answer."""

    request: R
    model: Model
    name: str
    kind: str
    object: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.kind}-{secrets.token_hex(12)}"

    def base(self, object: str = "") -> dict[str, Any]:
        """What every object of an answer says."""
        return {"id": self.id, "object": object or self.object, "created": self.created, "model": self.name,
                "system_fingerprint": fingerprint(self.model)}


def fingerprint(model: Model) -> str:
    """The same for all answers that are computed alike: by this version, of this bundle."""
    return f"edgert-{__version__}-{model.digest}"


def usage(generations: Sequence[Generation], prompts: int) -> dict[str, Any]:
    """How many tokens were used. prompts: how many different prompts there are; each is counted once."""
    each = len(generations) // prompts
    prompt = sum(len(generation.prompt_ids) for generation in generations[::each])
    cached = sum(g.statistics.prompt_tokens - g.statistics.prompt_computed for g in generations[::each])
    answer = sum(len(generation.token_ids) for generation in generations)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached}}


def text_and_reason(pieces: Sequence[Piece]) -> tuple[str, str | None]:
    """The text of an answer, and why it ended."""
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason if pieces else None
