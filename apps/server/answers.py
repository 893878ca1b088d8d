"""What chat and plain completions have in common: who answers, what an answer used, and how one is asked for."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from edgert import LanguageModel, __version__

from .requests import Sampled

R = TypeVar("R", bound=Sampled)


@dataclass
class Answering(Generic[R]):
    """One request, and the model that answers it. kind: the prefix of its id. object: what OpenAI calls the answer."""

    request: R
    model: LanguageModel
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


def fingerprint(model: LanguageModel) -> str:
    """The same for all answers that are computed alike: by this version, of this bundle."""
    return f"edgert-{__version__}-{model.digest}"


class Used(NamedTuple):
    """Tokens of an answer: of its prompt, those of them that were in the cache, and its own."""

    prompt: int
    cached: int
    answer: int


def usage(answers: Sequence[Used], each: int) -> dict[str, Any]:
    """How many tokens were used. each: so many answers have the same prompt, which is counted once."""
    prompt = sum(used.prompt for used in answers[::each])
    answer = sum(used.answer for used in answers)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": sum(used.cached for used in answers[::each])}}
