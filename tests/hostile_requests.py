"""Requests as nobody should send them: bodies that are nearly right, wrong, broken or none."""

import json
import random
import re
import socket
from dataclasses import dataclass
from typing import Any

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/edgert/budget", "/v1/models",
         "/api/chat", "/api/generate", "/api/show", "/api/tags", "/api/pull", "/api/delete", "/api/nothing",
         "/v1/models/%2e%2e", "/health", "/metrics", "/edgert/status", "/tokenizer_info", "/", "/page/",
         "/page/..%2fserver%2fservice.py", "/page/%00", "/page/%ff", "/nothing", "/v1", "//", "/%")
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/api/chat": {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 2}},
    "/api/generate": {"model": "tiny", "prompt": "a", "options": {"num_predict": 2}},
    "/api/show": {"model": "tiny"},
    "/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1, 2]}}
NAMES = ("messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
         "repetition_penalty", "seed", "stop", "n", "logprobs", "top_logprobs", "echo", "stream", "stream_options",
         "logit_bias", "presence_penalty", "frequency_penalty", "tools", "tool_choice", "response_format", "functions",
         "model", "best_of", "suffix", "content", "tokens", "role", "memory", "modalities", "user",
         "add_special_tokens", "options", "num_predict", "keep_alive", "format", "raw", "system", "think")
_DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(60):
    _DEEP = {"type": "object", "properties": {"a": {"type": "array", "items": _DEEP}}, "required": ["a"]}
SCHEMAS: tuple[Any, ...] = (
    {"type": "object"}, True, False, {}, [], "object", {"type": "thing"}, {"not": {}}, {"$ref": "#"}, _DEEP,
    {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}},
    {"$ref": "http://evil.example/schema"}, {"$ref": "file:///etc/passwd"}, {"enum": []}, {"enum": list(range(3000))},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "("},
    {"type": "string", "minLength": 10 ** 9},
    {"type": "string", "pattern": "(a{1000}){1000}"}, {"type": "array", "minItems": 10 ** 6, "maxItems": 1},
    {"type": "integer", "minimum": 5, "maximum": 4}, {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "properties": {"\u0000": {"const": "\ud800"}}, "required": ["\u0000"]},
    {"type": "object", "properties": {str(i): {"type": "number"} for i in range(500)}, "minProperties": 400},
    {"x-guidance": {"whitespace_pattern": ".*", "separators": 1}, "type": "object"})
"""As nobody should ask for answers of a form, and a few as one may."""
TEXTS = ("", "a", "user", "system", "assistant", "tool", "\u0000", "\ud800", "<|im_end|>", "</s>", "{{ 7*7 }}",
         "😀" * 40, "a" * 3000, "null", "-1", "600M", "json_object", "auto", "\r\n\r\n", "../../etc/passwd", "'; --")
NUMBERS = (0, 1, -1, 2, 5, 20, 258, 2 ** 31, 2 ** 63, 2 ** 64, -2 ** 63, 10 ** 40, 0.5, -0.0, 1e308, -1e308, 1e-320)
HOSTS = (*(b"localhost", b"127.0.0.1:80") * 8, b"evil.example", b"\xe4", b"[")
ORIGINS = (b"http://localhost:1", b"null", b"http://[", b"https://a.example")
METHODS = ("GET", "POST", "POST", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW")


@dataclass
class Asked:
    """A request as bytes, and what came of it. status: None where nothing, or nothing of HTTP, came."""

    sent: bytes
    status: int | None = None
    body: bytes = b""


class Hostile:
    """Makes requests, the same for the same seed. budgets: also for other budgets of memory."""

    def __init__(self, seed: int, *, budgets: bool = True) -> None:
        self._random = random.Random(seed)
        self._paths = [path for path in PATHS if budgets or path != "/edgert/budget"]

    def value(self, depth: int = 0) -> Any:
        kind = self._random.randrange(8 if depth < 4 else 5)
        if kind < 2:
            return self._random.choice(TEXTS)
        if kind < 4:
            return self._random.choice(NUMBERS)
        if kind == 4:
            return self._random.choice((None, True, False))
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self._random.randrange(4))]
        return {self._random.choice(NAMES): self.value(depth + 1) for _ in range(self._random.randrange(4))}

    def _form(self) -> dict[str, Any]:
        """What asks for an answer of a form."""
        schema, name = self._random.choice(SCHEMAS), self._random.choice(TEXTS)
        function = {"type": "function", "function": {"name": name, "parameters": schema}}
        forms: tuple[dict[str, Any], ...] = (
            {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}},
            {"response_format": {"type": "json_object", "schema": schema}},
            {"tools": [function], "tool_choice": "required"}, {"tools": [function, function]},
            {"tools": [function], "tool_choice": function},
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": name}}]},
                          {"role": "tool", "tool_call_id": name, "content": name}]})
        return self._random.choice(forms)

    def _body(self, path: str) -> bytes:
        random = self._random
        kind = random.randrange(10)
        if kind == 0:
            return random.randbytes(random.randrange(200))
        if kind == 1:
            return json.dumps(self.value()).encode()
        if kind == 2:
            return random.choice((b"", b"[" * 100_000, b'{"prompt":' * 5000, b"{", b"nul", b'"\\ud800"', b"\xff\xfe",
                                  b'{"prompt":"a","prompt":[]}', b'{"messages":[{}]}', b"1e999", b"[1,]", b"\x00" * 99))
        body = dict(RIGHT.get(path) or random.choice(list(RIGHT.values())))
        for _ in range(random.randrange(4)):
            body[random.choice(NAMES)] = self.value()
        if random.random() < 0.2:
            body |= self._form()
        text = json.dumps(body).encode()
        if kind == 3:
            at = random.randrange(len(text))
            text = text[:at] + random.randbytes(random.randrange(4)) + text[at + random.randrange(3):]
        return text

    def request(self) -> Asked:
        random = self._random
        path, method = random.choice(self._paths if random.random() < 0.4 else list(RIGHT)), random.choice(METHODS)
        body = self._body(path)
        lines = [f"{method} {path} HTTP/{random.choice(('1.1', '1.1', '1.1', '1.1', '1.0'))}".encode()]
        if random.random() < 0.97:
            lines.append(b"Host: " + random.choice(HOSTS))
        if random.random() < 0.05:
            lines.append(b"Origin: " + random.choice(ORIGINS))
        if random.random() < 0.1:
            lines.append(random.choice((b"Authorization: Bearer x", b"X: " + b"y" * 5000, b"Expect: 100-continue",
                                        b"Connection: close", b"Transfer-Encoding: chunked", b"broken", b": x",
                                        b"Content-Type: multipart/form-data", b"Upgrade: websocket")))
        if random.random() < 0.97:
            lines.append(b"Content-Length: %d" % (len(body) + (random.choice((-1, 1, 10 ** 12))
                                                               if random.random() < 0.03 else 0)))
        return Asked(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def send(self, port: int, patience: float = 0.3) -> Asked:
        """Send one, and read for so many seconds what comes: some clients leave before."""
        asked, data = self.request(), b""
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(patience * self._random.random() if self._random.random() < 0.1 else patience)
            try:
                connection.sendall(asked.sent)
                while part := connection.recv(65536):
                    data += part
                    head, _, body = data.partition(b"\r\n\r\n")
                    if b"content-length: %d" % len(body) in head.lower() or body.endswith(
                            (b"data: [DONE]\n\n\r\n", b"\r\n0\r\n\r\n")):
                        break
            except OSError:  # it took too long, or the server had enough
                pass
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        asked.body = body[:int(length[1])] if length else body  # what was sent may have been a second request too
        words = head.split()
        asked.status = int(words[1]) if len(words) > 1 and head.startswith(b"HTTP/1.1 ") else None
        return asked
