"""/api/embed: vectors of texts, as Ollama's clients ask for them."""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta

from ..embedding import Embedded, Texts, in_parts, numbers
from ..errors import ApiError
from .names import plain


class EmbedRequest(Texts, kw_only=True):
    """The body of /api/embed. `keep_alive` is not looked at: the process that makes vectors ends when it is idle."""

    model: Annotated[str, Meta(max_length=4096)]
    truncate: bool | None = None

    def check(self, model: str) -> None:
        if plain(self.model) != plain(model):
            raise ApiError(404, f"model {self.model[:200]!r} not found; the one for embeddings is {model}")
        if self.truncate is False:
            raise ApiError(400, "truncate is false, which is not supported: texts that are too long are cut")

    async def answer(self, embedded: Embedded) -> AsyncIterator[bytes]:
        yield b'{"model":' + msgspec.json.encode(self.model) + b',"embeddings":['
        async for part in in_parts(embedded.vectors, lambda _, vector: numbers(vector)):
            yield part
        whole, computing = (round(1e9 * seconds) for seconds in embedded.seconds)
        yield (f'],"total_duration":{whole},"load_duration":{whole - computing},'
               f'"prompt_eval_count":{embedded.tokens}}}').encode()
