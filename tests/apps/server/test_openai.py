"""OpenAI's own client, unchanged: what it is given is what the model says by itself."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from served import Server

import edgert
from edgert import __version__

pytestmark = pytest.mark.xdist_group("server")
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def said(model: edgert.Model) -> str:
    return model.chat([{"role": "user", "content": "Name three colours."}], max_tokens=24).text()


def test_models(server: Server, smollm2: Path) -> None:
    (only,) = server.client().models.list().data
    assert (only.id, only.owned_by) == (smollm2.stem, "edgert")
    assert server.client().models.retrieve(only.id) == only
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-4o")


def test_chat(server: Server, model: edgert.Model, said: str) -> None:
    answer = server.client().chat.completions.create(model="any", messages=QUESTION, max_tokens=24)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (said, "assistant", "length")
    assert answer.usage is not None and answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == len(model.render([{"role": "user", "content": "Name three colours."}]))
    assert answer.system_fingerprint == f"edgert-{__version__}-{model.digest}"


def test_prompt_tokens_that_were_cached(server: Server) -> None:
    def ask() -> tuple[int, int]:
        usage = server.client().chat.completions.create(model="any", max_tokens=1, messages=[
            {"role": "user", "content": "A question that nobody has asked here before."}]).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0

    (prompt, first), (_, second) = ask(), ask()
    assert first < second == prompt - 1


def test_stream(server: Server, said: str) -> None:
    chunks = list(server.client().chat.completions.create(
        model="any", messages=QUESTION, max_completion_tokens=24, stream=True, stream_options={"include_usage": True}))
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == said
    assert {chunk.choices[0].finish_reason for chunk in [first, *middle]} == {None}
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("length", None)
    assert usage.choices == [] and usage.usage is not None and usage.usage.completion_tokens == 24
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_helper(server: Server, said: str) -> None:
    """The client's own accumulator of chunks."""
    word = said.split()[3]
    with server.client().chat.completions.stream(model="any", messages=QUESTION, max_tokens=24, stop=word) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == said[:said.index(word)]


async def _asked(server: Server) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model="any", messages=QUESTION, max_tokens=24, stream=True)
        return [chunk.choices[0].delta.content or "" async for chunk in stream]


def test_async_client(server: Server, said: str) -> None:
    import asyncio
    assert "".join(asyncio.run(_asked(server))) == said


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: Server, model: edgert.Model, *, stream: bool) -> None:
    pieces = [piece for piece in model.chat([{"role": "user", "content": "Name three colours."}], max_tokens=6,
                                            logprobs=3) if piece.token_id is not None]
    create = server.client().chat.completions.create
    if stream:
        chunks = list(create(model="any", messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=3, stream=True))
        found = [entry for chunk in chunks for entry in
                 (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []]
    else:
        logprobs = create(model="any", messages=QUESTION, max_tokens=6, logprobs=True,
                          top_logprobs=3).choices[0].logprobs
        assert logprobs is not None
        found = logprobs.content or []
    assert [entry.logprob for entry in found] == [piece.logprob for piece in pieces]
    assert [[top.logprob for top in entry.top_logprobs] for entry in found] == [
        [logprob for _, logprob in piece.top_logprobs] for piece in pieces]
    assert [bytes(entry.bytes or []) for entry in found] == [
        model.tokenizer.token_bytes(piece.token_id) for piece in pieces if piece.token_id is not None]


def test_several_answers(server: Server) -> None:
    def texts() -> list[str | None]:
        answer = server.client().chat.completions.create(model="any", messages=QUESTION, max_tokens=12, n=3, seed=5,
                                                         temperature=1.2)
        assert answer.usage is not None and answer.usage.completion_tokens == 36
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    assert texts() == texts() and len(set(texts())) == 3


def test_several_answers_in_a_stream(server: Server) -> None:
    chunks = list(server.client().chat.completions.create(model="any", messages=QUESTION, max_tokens=4, n=2,
                                                          stream=True))
    ends = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason]
    begins = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].delta.role]
    assert begins == ends == [0, 1]


def test_stop(server: Server, said: str) -> None:
    word = said.split()[3]
    choice = server.client().chat.completions.create(model="any", messages=QUESTION, max_tokens=24,
                                                     stop=["nowhere", word]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (said[:said.index(word)], "stop")


def test_biases_and_penalties(server: Server, model: edgert.Model, said: str) -> None:
    first = model.tokenizer.encode(said)[0]
    create = server.client().chat.completions.create
    for extra in ({"logit_bias": {str(first): -100}}, {"presence_penalty": 1.5}, {"frequency_penalty": 1.5}):
        text = create(model="any", messages=QUESTION, max_tokens=24, extra_body=extra).choices[0].message.content
        settings = {**extra, **({"logit_bias": {first: -100.0}} if "logit_bias" in extra else {})}
        alone = model.chat([{"role": "user", "content": "Name three colours."}], max_tokens=24, **settings)
        assert alone.text() == text != said
    for name, value in ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}), ("presence_penalty", 3):
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="any", messages=QUESTION, extra_body={name: value})
        assert caught.value.param is not None and caught.value.param.startswith(name)
    with pytest.raises(openai.BadRequestError, match="not in the vocabulary"):
        create(model="any", messages=QUESTION, extra_body={"logit_bias": {"999999": 1}})


def test_a_scored_prompt_and_what_a_bias_makes_of_its_end(server: Server, model: edgert.Model) -> None:
    """What is likeliest by itself is not what follows then."""
    ids = model.tokenizer.encode("The capital of France is")
    def likeliest(**settings: Any) -> int:
        (answer := model.generate(ids, max_tokens=1, **settings)).text()
        return answer.token_ids[0]

    first = likeliest()
    choice = server.client().completions.create(model="any", prompt=ids, max_tokens=1, echo=True, logprobs=0,
                                                logit_bias={str(first): -100}).choices[0]
    other = likeliest(logit_bias={first: -100.0})
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    assert choice.logprobs.tokens[-1] == model.tokenizer.decode([other]) and other != first


def test_parts_of_a_message(server: Server, said: str) -> None:
    parts: list[ChatCompletionMessageParam] = [{"role": "user", "content": [
        {"type": "text", "text": "Name three "}, {"type": "text", "text": "colours."}]}]
    answer = server.client().chat.completions.create(model="any", messages=parts, max_tokens=24)
    assert answer.choices[0].message.content == said


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt(server: Server, *, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"has 20\d\d tokens, the context room for 1024") as caught:
        server.client().chat.completions.create(model="any", stream=stream, messages=[
            {"role": "user", "content": "word " * 2000}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(("extra", "param"), [
    ({"functions": [{"name": "f"}]}, "functions"), ({"temperature": 1000}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"n": 0}, "n"), ({"max_tokens": -1}, "max_tokens"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"modalities": ["audio"]}, "modalities"),
    ({"messages": []}, "messages"), ({"messages": [{"content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content")])
def test_what_cannot_be_had_is_refused_by_name(server: Server, extra: dict[str, object], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="any", messages=QUESTION, extra_body=extra)
    assert caught.value.param == param
    assert isinstance(caught.value.body, dict) and set(caught.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("extra", [
    {"tools": [], "tool_choice": "none", "user": "me", "metadata": {"a": "b"}, "store": False},
    {"response_format": {"type": "text"}, "service_tier": "auto", "something_new": [1, {}]},
    {"temperature": None, "stop": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0}])
def test_what_asks_for_nothing_is_ignored(server: Server, said: str, extra: dict[str, object]) -> None:
    answer = server.client().chat.completions.create(model="any", messages=QUESTION, max_tokens=24, extra_body=extra)
    assert answer.choices[0].message.content == said


def test_completions(server: Server, model: edgert.Model) -> None:
    prompts = ["The capital of France is", "def add(a, b):"]
    alone = [model.generate(prompt, max_tokens=8).text() for prompt in prompts]
    answer = server.client().completions.create(model="any", prompt=prompts, max_tokens=8)
    assert [choice.text for choice in answer.choices] == alone
    by_ids = server.client().completions.create(model="any", prompt=[model.tokenizer.encode(p) for p in prompts],
                                                max_tokens=8, echo=True)
    assert [choice.text for choice in by_ids.choices] == [p + a for p, a in zip(prompts, alone, strict=True)]
    one = server.client().completions.create(model="any", prompt=model.tokenizer.encode(prompts[0]), max_tokens=8)
    assert [choice.text for choice in one.choices] == alone[:1]
    assert one.usage is not None and one.usage.prompt_tokens == len(model.tokenizer.encode(prompts[0]))


def test_completions_have_16_tokens_by_default(server: Server) -> None:
    answer = server.client().completions.create(model="any", prompt="Once upon a time")
    assert answer.usage is not None and answer.usage.completion_tokens == 16


def test_completions_in_a_stream(server: Server, model: edgert.Model) -> None:
    alone = model.generate("Once upon a time", max_tokens=8).text()
    chunks = list(server.client().completions.create(model="any", prompt="Once upon a time", max_tokens=8, echo=True,
                                                     stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Once upon a time" + alone
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 8


def test_logprobs_of_completions(server: Server, model: edgert.Model) -> None:
    pieces = [piece for piece in model.generate("Once upon a time", max_tokens=5, logprobs=2)
              if piece.token_id is not None]
    logprobs = server.client().completions.create(model="any", prompt="Once upon a time", max_tokens=5,
                                                  logprobs=2).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [piece.logprob for piece in pieces]
    assert [list(top.values()) for top in logprobs.top_logprobs or []] == [
        [logprob for _, logprob in piece.top_logprobs] for piece in pieces]
    assert logprobs.tokens == [model.tokenizer.decode([piece.token_id or 0]) for piece in pieces]
    assert logprobs.text_offset == [sum(map(len, logprobs.tokens[:i])) for i in range(5)]


@pytest.mark.parametrize(("prompt", "said"), [
    ([99999999], "token 99999999 is not in the vocabulary"), ([], "empty list"), ("", "the prompt is empty"),
    (["a", [1]], "give a text, token ids, or a list of either"), (["x"] * 200, "200 answers are asked for")])
def test_prompts_that_are_none(server: Server, prompt: list[int], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        server.client().completions.create(model="any", prompt=prompt)


def test_tokenizing(server: Server, model: edgert.Model) -> None:
    ids = model.tokenizer.encode("Once upon <|im_end|> a time")
    for prefix in ("", "/v1"):
        for field in ("prompt", "content"):
            answer = server.ask(f"{prefix}/tokenize", {field: "Once upon <|im_end|> a time"}).json()
            assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 1024)
        assert server.ask(f"{prefix}/detokenize", {"tokens": ids}).json()["prompt"] == model.tokenizer.decode(ids)
        information = server.ask(f"{prefix}/tokenizer_info").json()
        assert information["eos_token"] == "<|im_end|>" and "im_start" in information["chat_template"]
    messages = [{"role": "user", "content": "Hello"}]
    assert server.ask("/tokenize", {"messages": messages}).json()["tokens"] == model.render(messages)
    assert server.ask("/tokenize", {}).status_code == 400


@pytest.mark.parametrize(("max_tokens", "stream"), [(0, False), (1, False), (1, True), (3, False), (3, True)])
def test_the_prompt_with_its_logprobs(server: Server, model: edgert.Model, max_tokens: int, *, stream: bool) -> None:
    """As evaluations ask for it: the first token has none, what follows the prompt has one entry more for each."""
    ids = model.tokenizer.encode("The capital of France is")
    scores = model.score(ids, top=2)
    pieces = list(model.generate(ids, max_tokens=max_tokens, logprobs=2))[:-1]
    answer = server.client().completions.create(model="any", prompt=[ids, ids[:2]], max_tokens=max_tokens, echo=True,
                                                logprobs=2, stream=stream)
    choices = [choice for chunk in (answer if stream else [answer]) for choice in chunk.choices]
    first = [choice for choice in choices if choice.index == 0]
    assert {choice.index for choice in choices} == {0, 1}
    assert "".join(choice.text for choice in first) == model.tokenizer.decode(ids) + "".join(p.text for p in pieces)
    assert first[-1].finish_reason == "length"
    found = [[entry for choice in first for entry in getattr(choice.logprobs, name)]
             for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")]
    tokens, token_logprobs, top_logprobs, offsets = found
    assert {len(entries) for entries in found} == {len(ids) + max_tokens}
    assert token_logprobs == [None, *scores.logprobs[1:].tolist(), *(piece.logprob for piece in pieces)]
    assert top_logprobs[0] is None
    for token, logprob, top in zip(tokens[1:], token_logprobs[1:], top_logprobs[1:], strict=True):
        assert top[token] == logprob and len(top) in (2, 3)
    assert offsets == [sum(map(len, tokens[:number])) for number in range(len(tokens))]


@pytest.mark.parametrize("temperature", [0, 0.01])
def test_an_end_of_text_token_that_is_chosen_has_its_logprob(server: Server, model: edgert.Model,
                                                             temperature: float) -> None:
    """Where one token is asked for, there is always one entry more than the prompt has, and it holds the token."""
    def ended(question: str) -> tuple[list[int], str | None]:
        answer = model.chat([{"role": "user", "content": question}], max_tokens=60)
        *_, last = answer
        return answer.prompt_ids + answer.token_ids, last.finish_reason

    ids = next(ids for ids, reason in map(ended, ("Hi", "Hello!", "Thank you.", "Good morning!", "Bye"))
               if reason == "stop")  # up to the end that the model chose
    answer = server.client().completions.create(model="any", prompt=ids, max_tokens=1, echo=True, logprobs=1,
                                                temperature=temperature, seed=1)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop" and choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == len(ids) + 1
    assert choice.logprobs.tokens is not None and choice.logprobs.tokens[-1] == "<|im_end|>"
    assert choice.logprobs.top_logprobs is not None and "<|im_end|>" in choice.logprobs.top_logprobs[-1]
    assert choice.text == model.tokenizer.decode(ids)
