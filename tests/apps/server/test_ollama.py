"""Ollama's interface, asked by its own client."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import ollama
import pytest
from served import Server
from tiny_model import give_tokenizer, write_model
from tokenizers import Tokenizer

import edgert
from edgert.converters.convert import convert

pytestmark = pytest.mark.xdist_group("server")
TEMPLATES = Path(__file__).parents[2] / "golden" / "chat_templates"
QUESTION = [{"role": "user", "content": "Name three colours."}]
NAME = "smollm2:latest"
GREEDY = {"temperature": 0, "num_predict": 24}
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]},
           "days": {"type": "integer", "enum": [1, 2, 3]}}, "required": ["city", "days"], "additionalProperties": False}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "description": "Useful.",
                                                      "parameters": WEATHER}}]
BOOLEANS = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}


@pytest.fixture(scope="module")
def client(server: Server) -> ollama.Client:
    return ollama.Client(server.url)


@pytest.fixture(scope="module")
def said(model: edgert.Model) -> str:
    return model.chat(QUESTION, max_tokens=24).text()


def check_end(last: Any, tokens: int, prompt: int) -> None:
    """What the last object of an answer says of it."""
    assert (last.done, last.eval_count, last.prompt_eval_count) == (True, tokens, prompt)
    parts = (last.load_duration, last.prompt_eval_duration, last.eval_duration)
    assert all(isinstance(part, int) and part > 0 for part in parts)
    assert sum(parts) <= last.total_duration


def test_what_there_is(client: ollama.Client, smollm2: Path, model: edgert.Model) -> None:
    (listed,) = client.list().models
    assert (listed.model, listed.size, listed.digest) == (NAME, smollm2.stat().st_size, model.digest)
    assert listed.modified_at is not None and listed.modified_at.timestamp() == pytest.approx(smollm2.stat().st_mtime)
    assert listed.details is not None and listed.details.model_dump() == {
        "parent_model": "", "format": "edgert", "family": "llama", "families": ["llama"], "parameter_size": "134.52M",
        "quantization_level": "Q4"}
    (loaded,) = client.ps().models
    assert (loaded.model, loaded.name, loaded.digest, loaded.context_length) == (NAME, NAME, model.digest, 1024)
    assert loaded.size and 50 << 20 < loaded.size <= 220 << 20
    assert loaded.expires_at and loaded.expires_at > datetime.now(UTC) + timedelta(days=36_500), "it is kept for ever"
    shown = client.show(NAME)
    assert (shown.details, shown.modified_at) == (listed.details, listed.modified_at)
    assert shown.capabilities == ["completion"]
    assert shown.template == model.chat_template and shown.license == "apache-2.0"
    assert shown.parameters and shown.parameters.split() == ["num_ctx", "1024"]
    assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
    assert (shown.modelinfo["llama.context_length"], shown.modelinfo["llama.block_count"]) == (1024, 30)


@pytest.mark.parametrize("name", ["smollm2", "smollm2:latest", "SmolLM2", "SMOLLM2:Latest"])
def test_names(client: ollama.Client, name: str) -> None:
    """An answer has the name that was asked for."""
    assert client.generate(name, "a", options={"num_predict": 1}).model == name


def test_names_with_a_tag(tiny: Path, tmp_path: Path) -> None:
    (bundle := tmp_path / "qwen2.5-coder-1.5b.edge").symlink_to(tiny)
    server = Server(bundle, errors=tmp_path / "errors").until_ready()
    client = ollama.Client(server.url)
    assert client.show("qwen2.5-coder:1.5b") == client.show("qwen2.5-coder-1.5b:latest")
    with pytest.raises(ollama.ResponseError, match=r"'qwen2\.5-coder:7b' not found"):
        client.show("qwen2.5-coder:7b")
    assert server.end() == 0


def test_chat(client: ollama.Client, model: edgert.Model, said: str) -> None:
    before = datetime.now(UTC)
    whole = client.chat(NAME, QUESTION, options=GREEDY)
    assert (whole.message.role, whole.message.content, whole.done_reason) == ("assistant", said, "length")
    check_end(whole, 24, len(model.render(QUESTION)))
    *parts, last = client.chat(NAME, QUESTION, options=GREEDY, stream=True)
    assert len(parts) > 10 and "".join(part.message.content or "" for part in parts) == said
    assert all((part.model, part.message.role, part.done, part.done_reason) == (NAME, "assistant", False, None)
               for part in parts)
    assert (last.message.content, last.done_reason) == ("", "length")
    check_end(last, 24, len(model.render(QUESTION)))
    times = [datetime.fromisoformat(part.created_at or "") for part in (whole, *parts, last)]
    assert times == sorted(times) and before < times[0] and times[-1] < datetime.now(UTC)


def test_streams_are_lines_and_the_default(server: Server, said: str) -> None:
    answer = server.ask("/api/chat", {"model": NAME, "messages": QUESTION, "options": GREEDY})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *lines, nothing = answer.text.split("\n")
    assert nothing == "" and "".join(json.loads(line)["message"]["content"] for line in lines) == said


def test_generate(client: ollama.Client, model: edgert.Model, said: str) -> None:
    prompt = QUESTION[0]["content"]
    whole = client.generate(NAME, prompt, options=GREEDY)
    assert (whole.response, whole.done_reason) == (said, "length")
    check_end(whole, 24, len(model.render(QUESTION)))
    assert "".join(part.response or "" for part in client.generate(NAME, prompt, options=GREEDY, stream=True)) == said
    pirate = [{"role": "system", "content": "You are a pirate."}, *QUESTION]
    assert (client.generate(NAME, prompt, system="You are a pirate.", options=GREEDY).response
            == model.chat(pirate, max_tokens=24).text())
    assert (client.generate(NAME, "Once upon a time", raw=True, options=GREEDY).response
            == model.generate("Once upon a time", max_tokens=24).text())


@pytest.mark.parametrize("marks", [("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
                                   ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")])
def test_what_stands_between_two_texts(tmp_path: Path, marks: tuple[str, str, str]) -> None:
    folder = give_tokenizer(write_model(tmp_path / "filler", vocab_size=261, max_position_embeddings=512))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(marks))
    tokenizer.save(str(folder / "tokenizer.json"))
    convert(str(folder), bundle := folder.with_suffix(".edge"), "q4")
    server = Server(bundle, errors=tmp_path / "errors").until_ready()
    client, (before, after, middle) = ollama.Client(server.url), marks
    raw = client.generate("filler", f"{before}def f({after}):{middle}", raw=True, options=GREEDY)
    answer = client.generate("filler", "def f(", suffix="):", options=GREEDY)
    assert (answer.response, answer.prompt_eval_count) == (raw.response, raw.prompt_eval_count) and answer.response
    plain = client.generate("filler", "def f(", suffix=middle, options=GREEDY)
    assert plain.prompt_eval_count == 3 + len("def f(") + len(middle), "no text makes a mark"
    assert server.end() == 0


def test_options(client: ollama.Client, model: edgert.Model, said: str) -> None:
    def chat(**options: Any) -> str:
        return client.chat(NAME, QUESTION, options=options).message.content or ""

    sampled = {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "seed": 5, "presence_penalty": 0.5}
    assert chat(num_predict=24, repeat_penalty=1.2, **sampled) == model.chat(
        QUESTION, max_tokens=24, repetition_penalty=1.2, **sampled).text()
    assert chat(num_predict=24, temperature=5, top_k=1, seed=-1) == said
    assert chat(num_predict=24.0, num_ctx=32_768, mirostat=2, num_gpu=99) == said, "what changes nothing is ignored"
    for stop in (said[5:8], [said[5:8], "nothing"]):
        answer = client.chat(NAME, QUESTION, options={"stop": stop})
        assert (answer.message.content, answer.done_reason) == (said[:5], "stop")
    assert len(chat(num_predict=-1, stop="!")) > len(said), "as long as it likes"


def test_formats(client: ollama.Client) -> None:
    prompt, options = "Give the capital of France as JSON with one key.", {"temperature": 0, "num_predict": 100}
    for form, schema in ("json", {"type": "object"}), (WEATHER, WEATHER):
        answer = client.chat(NAME, [{"role": "user", "content": prompt}], format=form, options=options)
        assert answer.done_reason == "stop"
        jsonschema.validate(json.loads(answer.message.content or ""), schema)
        assert client.generate(NAME, prompt, format=form, options=options).response == answer.message.content


def test_logprobs(client: ollama.Client, server: Server) -> None:
    wanted = server.client().chat.completions.create(model="any", messages=QUESTION, max_tokens=4, logprobs=True,  # type: ignore[call-overload]
                                                     top_logprobs=2).choices[0].logprobs.content
    options = {**GREEDY, "num_predict": 4}
    found = client.chat(NAME, QUESTION, options=options, logprobs=True, top_logprobs=2).logprobs or []
    assert [(one.token, one.logprob) for one in found] == [(one.token, one.logprob) for one in wanted]
    assert [[top.token for top in one.top_logprobs or []] for one in found] == [
        [top.token for top in one.top_logprobs] for one in wanted]
    streamed = [one for part in client.generate(NAME, QUESTION[0]["content"], options=options, logprobs=True,
                                                stream=True) for one in part.logprobs or []]
    assert [one.token for one in streamed] == [one.token for one in found]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model of random weights with the chat template of one that was made for tools."""
    folder = write_model(tmp_path_factory.mktemp("caller") / "caller", vocab_size=258, max_position_embeddings=4096)
    give_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": (TEMPLATES / "axolotl-qwen_25.jinja").read_text(), "bos_token": "<s>", "eos_token": "</s>"}))
    convert(str(folder), bundle := folder.with_suffix(".edge"), "q4")
    made = Server(bundle, errors=tmp_path_factory.mktemp("server") / "errors")
    yield made.until_ready()
    assert made.end() == 0 and "Traceback" not in made.said, made.said


def test_a_call(caller: Server) -> None:
    """With a format too the answer is a call or follows that; chance says which. A call comes as a whole, with an
    object of arguments. (The client leaves out of a schema what it does not know: such a model would find no end.)"""
    for seed in range(20):
        body = {"model": "caller", "messages": QUESTION, "tools": TOOLS, "format": BOOLEANS,
                "options": {"temperature": 1.2, "seed": seed, "num_predict": 400}}
        answer = ollama.ChatResponse(**caller.ask("/api/chat", {**body, "stream": False}).json())
        if (answer.message.content or "")[:1] != "[":
            break
    (call,) = answer.message.tool_calls or []
    assert (call.function.name, answer.message.content, answer.done_reason) == ("get_weather", "", "stop")
    jsonschema.validate(dict(call.function.arguments), WEATHER)
    *parts, last = map(json.loads, caller.ask("/api/chat", body).text.splitlines())
    assert [part["message"] for part in parts] == [{"role": "assistant", "content": "", "tool_calls": [
        parts[0]["message"]["tool_calls"][0]]}], "and no text"
    assert parts[0]["message"]["tool_calls"][0]["function"] == {
        "index": 0, "name": "get_weather", "arguments": call.function.arguments}
    assert last["done"] and "tool_calls" not in last["message"]


def test_a_call_that_is_cut_off_is_text(caller: Server) -> None:
    client = ollama.Client(caller.url)
    for seed in range(20):
        settings: dict[str, Any] = {"tools": TOOLS, "format": BOOLEANS,
                                    "options": {"temperature": 1.2, "seed": seed, "num_predict": 60}}
        answer = client.chat("caller", QUESTION, **settings)
        if (answer.message.content or "")[:1] != "[":
            break
    assert (answer.message.content or "").startswith('{"name": "get_weather", "arguments": {"city": ')
    assert not answer.message.tool_calls and answer.done_reason == "length"
    assert "".join(part.message.content or "" for part in client.chat(
        "caller", QUESTION, **settings, stream=True)) == answer.message.content


def test_a_call_and_its_result_are_sent_back(caller: Server) -> None:
    client, few = ollama.Client(caller.url), {"num_predict": 2}
    call = ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name="get_weather", arguments={
        "city": "Paris", "days": 1}))
    more: list[Any] = [*QUESTION, ollama.Message(role="assistant", tool_calls=[call]),
                       {"role": "tool", "tool_name": "get_weather", "content": "Sunny."}]
    first, then = (client.chat("caller", messages, options=few).prompt_eval_count for messages in (QUESTION, more))
    assert then - first > len('{"name": "get_weather", "arguments": {"city": "Paris", "days": 1}}Sunny.')
    assert "tools" in (client.show("caller").capabilities or [])


def test_tools_of_a_model_that_was_not_made_for_them(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="no place for tools") as caught:
        client.chat(NAME, QUESTION, tools=TOOLS, stream=False)
    assert caught.value.status_code == 400


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
GENERATE = {"model": "tiny", "prompt": "a"}


@pytest.mark.parametrize(("path", "body", "status", "said"), [
    ("chat", {**CHAT, "model": "llama3"}, 404, "model 'llama3' not found"),
    ("generate", {**GENERATE, "model": "tiny:7b"}, 404, "model 'tiny:7b' not found"),
    ("show", {"name": "llama3"}, 404, "model 'llama3' not found"), ("show", {}, 400, "model is required"),
    ("chat", {"messages": []}, 400, "model: object missing"), ("chat", b"", 400, "the body is not JSON"),
    ("chat", {**CHAT, "messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, 400,
     "messages[0].images is not supported"),
    ("generate", {**GENERATE, "images": ["aGk="]}, 400, "images is not supported"),
    ("generate", {**GENERATE, "suffix": "b"}, 400, "suffix is not supported: this model has no marks"),
    ("generate", {**GENERATE, "template": "{{ .Prompt }}"}, 400, "template is not supported"),
    ("generate", {**GENERATE, "context": [1, 2]}, 400, "context is not supported"),
    ("generate", {**GENERATE, "raw": True, "system": "b"}, 400, "raw mode does not support system"),
    ("chat", {**CHAT, "think": True}, 400, "'tiny' does not support thinking"),
    ("chat", {**CHAT, "format": "xml"}, 400, "format is 'xml'"),
    ("chat", {**CHAT, "format": {"not": {}}}, 400, "the schema cannot be used"),
    ("chat", {**CHAT, "keep_alive": "soon"}, 400, "keep_alive is 'soon'"),
    ("chat", {**CHAT, "options": {"temperature": -1}}, 400, "temperature is -1"),
    ("chat", {**CHAT, "options": {"top_k": "many"}}, 400, "options.top_k: expected"),
    ("chat", {**CHAT, "messages": [{"role": "user", "content": "a" * 2000}]}, 400, "the prompt has"),
    ("chat", {**CHAT, "messages": [{"role": "assistant", "tool_calls": [{"function": {
        "name": "f", "arguments": "{}"}}]}]}, 400, "messages[0].tool_calls[0].function.arguments: expected"),
    ("pull", {"model": "llama3"}, 404, "model 'llama3' not found; this server has tiny only"),
    ("embed", {"model": "tiny"}, 404, "this server has no model for embeddings; start it with --embeddings MODEL")])
def test_what_is_refused(tiny_server: Server, path: str, body: Any, status: int, said: str) -> None:
    for stream in (True, False):
        asked = {**body, "stream": stream} if isinstance(body, dict) else body
        answer = tiny_server.ask(f"/api/{path}", asked)
        assert answer.status_code == status, answer.text
        error = answer.json()
        assert set(error) == {"error"} and error["error"].startswith(said) and "\n" not in error["error"]


def test_one_model_is_neither_fetched_nor_deleted(tiny_server: Server, tiny: Path) -> None:
    client = ollama.Client(tiny_server.url)
    assert client.pull("tiny").status == "success" and tiny.is_file()
    with pytest.raises(ollama.ResponseError, match="with --chooser") as caught:
        client.delete("tiny")
    assert caught.value.status_code == 403 and tiny.is_file()


def test_the_version_and_whether_it_is_there(tiny_server: Server) -> None:
    """Clients want a version of Ollama, of numbers; and either any answer at / or this one."""
    assert all(part.isdecimal() for part in tiny_server.ask("/api/version").json()["version"].split("."))
    for path in ("/", "/api/version", "/api/tags"):
        assert httpx.head(tiny_server.url + path).status_code == 200
    assert tiny_server.ask("/").text == "Ollama is running"
    assert "<html" in tiny_server.ask("/", headers={"Accept": "text/html,application/xml;q=0.9,*/*;q=0.8"}).text


def test_who_may_use_it(tiny: Path, tiny_server: Server, tmp_path: Path) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        refused = tiny_server.ask("/api/tags", headers=headers)
        assert refused.status_code == 403 and isinstance(refused.json()["error"], str)
    preflight = httpx.options(f"{tiny_server.url}/api/delete", headers={"Origin": "http://localhost:3000",
                                                                        "Access-Control-Request-Method": "DELETE"})
    assert "DELETE" in preflight.headers["access-control-allow-methods"]
    (tmp_path / "keys").write_text("a-key-of-the-test")
    server = Server(tiny, "--api-key-file", str(tmp_path / "keys"), errors=tmp_path / "errors").until_ready()
    with pytest.raises(ollama.ResponseError, match="a key is needed") as caught:
        ollama.Client(server.url).list()
    assert caught.value.status_code == 401
    assert ollama.Client(server.url, headers={"Authorization": "Bearer a-key-of-the-test"}).list().models
    assert server.end() == 0


def test_a_client_that_leaves(tiny_server: Server) -> None:
    """Its answer ends: the next one does not wait for it."""
    client = ollama.Client(tiny_server.url)
    begun = client.generate("tiny", "a", raw=True, stream=True)
    next(iter(begun))
    begun.close()  # type: ignore[attr-defined]
    assert client.generate("tiny", "a", options={"num_predict": 1}).done
    assert tiny_server.status()["queue"] == 0


def test_several_clients(tiny_server: Server) -> None:
    """Each gets its own answer, as they would one after another."""
    client = ollama.Client(tiny_server.url)
    prompts = ["a", "b", "c", "d"]
    alone = [client.generate("tiny", prompt, options=GREEDY).response for prompt in prompts]
    together: dict[str, str | None] = {}

    def ask(prompt: str) -> None:
        together[prompt] = client.generate("tiny", prompt, options=GREEDY).response

    threads = [threading.Thread(target=ask, args=[prompt]) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone
