"""Errors as OpenAI's clients expect them."""

import re
from collections.abc import Collection
from typing import Any

import msgspec

from edgert import ContextLengthError, EdgertError, GrammarError

_NAMES = {"schema": "response_format"}
"""Settings of `Model.generate` that have another name here."""


class ApiError(Exception):
    """A request that gets no answer.

    status: of HTTP. message: one sentence for people. param: the parameter that is wrong. code: for programs.
    retry_after: seconds after which it may be tried again.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that tells a client."""
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}


def _type(status: int) -> str:
    names = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return names.get(status, "invalid_request_error" if status < 500 else "server_error")


def refused(error: EdgertError, fields: Collection[str] = ()) -> ApiError:
    """What the model refuses before it computes anything. fields: of the request; what the model says of a setting
    begins with its name."""
    text = str(error)
    begins = re.match(r"(?:the )?(\w+)", text)
    name = _NAMES.get(begins[1], begins[1]) if begins else None
    if isinstance(error, ContextLengthError):
        return ApiError(400, text, param=name if name in fields else "messages", code="context_length_exceeded")
    return ApiError(400, text, param=name if name in fields else None)


def failed(error: BaseException) -> ApiError:
    """What went wrong while an answer was computed: a disk that failed, say; or a grammar that became too complex."""
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param="response_format")
    return ApiError(500, str(error) if isinstance(error, EdgertError) else "an internal error; the server's output "
                    "says more", code="internal_error")


def invalid(error: msgspec.MsgspecError | ValueError | RecursionError) -> ApiError:
    """A body that is no JSON, or not of the right shape."""
    if isinstance(error, msgspec.ValidationError):
        what, _, place = str(error).partition(" - at ")
        path = re.search(r"\$\.?([^`]*)", place)
        param = path[1] if path and path[1] else None
        if param is None and (missing := re.search(r"required field `(\w+)`", what)):
            param = missing[1]
        return ApiError(400, f"{param or 'the body'}: {what[:1].lower()}{what[1:]}", param=param, code="invalid_value")
    return ApiError(400, f"the body is not JSON: {str(error) or 'it is nested too deeply'}", code="invalid_json")
