"""Who may use a server: never a page of another web site, from other machines only who has the key."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from served import Server

pytestmark = pytest.mark.xdist_group("server")
KEY = "a-key-of-the-test"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1",
                                  "localhost:99999999", "evil.example:8080", "127.0.0.1:x"])
@pytest.mark.parametrize("path", ["/v1/models", "/edgert/status", "/health", "/", "/page/main.js"])
def test_other_names(tiny_server: Server, host: str, path: str) -> None:
    answer = tiny_server.ask(path, headers={"Host": host})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "LOCALHOST", "[::1]:80", "127.0.0.1"])
def test_names_of_this_machine(tiny_server: Server, host: str) -> None:
    assert tiny_server.ask("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://",
                                    "http://127.0.0.1@evil.example", "http://evil.example:8080"])
def test_pages_of_other_sites(tiny_server: Server, origin: str) -> None:
    """Also those that need no preflight, and cannot read the answer: it would be computed."""
    tokens = tiny_server.status()["tokens"]
    answer = tiny_server.ask("/v1/completions", {"prompt": "a"}, headers={"Origin": origin,
                                                                          "Content-Type": "text/plain"})
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    before = httpx.options(f"{tiny_server.url}/v1/completions", headers={
        "Origin": origin, "Access-Control-Request-Method": "POST"})
    assert before.status_code == 403 and "access-control-allow-origin" not in before.headers
    assert tiny_server.status()["tokens"] == tokens


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1", "https://[::1]:3000"])
def test_pages_of_this_machine(tiny_server: Server, origin: str) -> None:
    before = httpx.options(f"{tiny_server.url}/v1/completions", headers={
        "Origin": origin, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os"})
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == origin
    assert before.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    for body, status in ({"prompt": "a", "max_tokens": 1}, 200), ({"prompt": ""}, 400):
        answer = tiny_server.ask("/v1/completions", body, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, origin)


@pytest.fixture(scope="module")
def guarded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all machines."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"another-key\n\n {KEY} \n")
    server = Server(tiny, "--host", "0.0.0.0", "--api-key-file", str(folder / "keys"), errors=folder / "errors")
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    yield server.until_ready()
    server.end()


def test_key(guarded: Server) -> None:
    for key in (KEY, "another-key"):
        assert guarded.client(api_key=key).completions.create(model="any", prompt="a", max_tokens=1).choices
    with pytest.raises(openai.AuthenticationError) as caught:
        guarded.client(api_key="wrong").completions.create(model="any", prompt="a")
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/edgert/status", "/tokenizer_info", "/nothing",
                                  "/page/../v1/models", "//v1/models"])
@pytest.mark.parametrize("header", ["", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x", "Bearer \xff"])
def test_without_the_key(guarded: Server, path: str, header: str) -> None:
    headers = [(b"Authorization", header.encode("latin-1"))] if header else []
    answer = httpx.get(guarded.url + path, headers=headers)
    assert answer.status_code == 401 and KEY not in answer.text


def test_health_and_the_page_need_no_key(guarded: Server) -> None:
    assert guarded.ask("/health").status_code == 200
    assert guarded.ask("/").status_code in (200, 404)


def test_any_name_with_the_key(guarded: Server) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    for origin, status in ("http://host.example", 200), ("http://evil.example", 403):
        assert guarded.ask("/v1/models", headers={**key, "Host": "host.example", "Origin": origin}
                           ).status_code == status


def refusal(*options: str) -> str:
    done = subprocess.run([sys.executable, "-m", "edgert", "serve", *options], capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_is_not_started(tiny: Path, tmp_path: Path, tiny_server: Server) -> None:
    assert refusal(str(tiny), "--host", "0.0.0.0") == (
        "edgert: --host 0.0.0.0 lets other machines in; give them a key with --api-key-file\n")
    (tmp_path / "empty").touch()
    assert refusal(str(tiny), "--api-key-file", str(tmp_path / "empty")).endswith("has no key; write one into it\n")
    (tmp_path / "short").write_text("1234\n")
    assert "at least 8 characters" in refusal(str(tiny), "--api-key-file", str(tmp_path / "short"))
    port = tiny_server.url.rpartition(":")[2]
    assert refusal(str(tiny), "--port", port) == (
        f"edgert: --host 127.0.0.1 --port {port}: address already in use; choose another\n")
    assert "there is no such file" in refusal(str(tmp_path / "nothing.edge"))
