"""What form an answer shall have: OpenAI's response_format."""

from typing import Any

from msgspec import Struct, field

from .errors import ApiError

Schema = dict[str, Any] | bool
_ANY_OBJECT = {"type": "object"}


class JsonSchema(Struct):
    """given: the schema itself. Its name says nothing to us, and the answer always follows it (strict)."""

    given: Schema | None = field(name="schema", default=None)


class ResponseFormat(Struct):
    """type: text, json_object or json_schema. given: a schema for a json_object, as llama.cpp has it."""

    type: str
    json_schema: JsonSchema | None = None
    given: Schema | None = field(name="schema", default=None)

    @property
    def schema(self) -> Schema | None:
        """The JSON schema that the answer follows; None for any text. Raises ApiError."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return _ANY_OBJECT if self.given is None else self.given
        if self.type != "json_schema":
            raise ApiError(400, f"response_format: the type {self.type} is not supported, only text, json_object and "
                           "json_schema", param="response_format", code="unsupported")
        if self.json_schema is None:
            raise ApiError(400, "response_format: json_schema is missing", param="response_format.json_schema")
        return _ANY_OBJECT if self.json_schema.given is None else self.json_schema.given
