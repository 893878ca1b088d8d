"""What Ollama's clients are told of bundles."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgert.describing import Description, describe
from edgert.errors import BundleError

from ..errors import ApiError
from ..models import Choice
from .durations import time_text
from .entries import description, details, entry

_FORMAT = "edgert"


class Details:
    """Reads bundles' headers, each once as long as its file stays the same."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int], Description]] = {}

    def of(self, choice: Choice) -> Description:
        """Raises ApiError for a file that is no bundle, or not there any more."""
        try:
            stat = choice.path.stat()
            mark = (stat.st_mtime_ns, stat.st_size)
            if (known := self._read.get(choice.path)) is None or known[0] != mark:
                known = self._read[choice.path] = (mark, describe(choice.path))
            return known[1]
        except (OSError, BundleError) as error:
            raise ApiError(500, f"{choice.name} cannot be read: {error}") from None

    def entries(self, choices: list[Choice]) -> list[dict[str, Any]]:
        """The models of a list that can be read, the ones that changed last first."""
        found = []
        for choice in choices:
            with suppress(ApiError):
                found.append(self.entry(choice) | {"modified_at": changed(choice)})
        return sorted(found, key=lambda one: str(one["modified_at"]), reverse=True)

    def entry(self, choice: Choice) -> dict[str, Any]:
        """Raises ApiError."""
        found = self.of(choice)
        return entry(choice.name, choice.size, found.digest, _details(found), _capabilities(found))

    def shown(self, choice: Choice, context: int, *, current: bool) -> dict[str, Any]:
        """All that /api/show says. context: tokens that the server holds: what clients cut their prompts to. current:
        whether it holds them of this model. Raises ApiError."""
        found = self.of(choice)
        return description(
            _details(found), _capabilities(found), _information(choice, found, context), license=found.license,
            template=found.template or "", parameters=f"{'num_ctx':30} {context}" if current else "",
        ) | {"modified_at": changed(choice)}


def changed(choice: Choice) -> str:
    """When a model's file was changed. Raises ApiError where it is not there any more."""
    try:
        return time_text(datetime.fromtimestamp(choice.path.stat().st_mtime, UTC))
    except OSError as error:
        raise ApiError(500, f"{choice.name} cannot be read: {error}") from None


def _details(found: Description) -> dict[str, Any]:
    return details(_FORMAT, found.architecture, _rounded(found.parameters), found.preset.upper())


def _capabilities(found: Description) -> list[str]:
    tools = ["tools"] if "tools" in (found.template or "") else []
    return ["completion", *tools, *(["thinking"] if found.thinks else [])]


def _information(choice: Choice, found: Description, context: int) -> dict[str, Any]:
    kind = found.architecture
    return {
        "general.architecture": kind, "general.basename": choice.name,
        "general.parameter_count": found.parameters, f"{kind}.context_length": min(found.context, context),
        f"{kind}.embedding_length": found.hidden_size, f"{kind}.block_count": found.layers,
        f"{kind}.feed_forward_length": found.intermediate_size,
        f"{kind}.attention.head_count": found.heads,
        f"{kind}.attention.head_count_kv": found.key_value_heads, f"{kind}.vocab_size": found.vocabulary}


def _rounded(number: int) -> str:
    """A number of weights for people, as 134.52M or 1.8B."""
    if number >= 10 ** 9:
        return f"{number / 1e9:.1f}B"
    return f"{number / 1e6:.2f}M" if number >= 10 ** 6 else f"{number / 1e3:.0f}K"
