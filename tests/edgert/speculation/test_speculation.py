"""Answers with speculation are those without, whatever is guessed, and whenever they are ended."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_engine
from faulty_file import FaultyFile
from tiny_model import give_tokenizer, write_model

import edgert
from edgert import opening
from edgert.converters.convert import convert
from edgert.engine import worker
from edgert.engine.engine import Engine
from edgert.generation.generation import Piece
from edgert.kernels.records import CANCELLED
from edgert.speculation.lookup import Lookup
from edgert.speculation.speculator import _Guesses, parse

PROMPT = "Of rivers and of seas"
PLACEMENTS: dict[str, dict[str, float]] = {
    "all": {"keep": 1.0},
    "bases": {"keep": 1.0, "details": 0.0, "attention": 1.0, "head": 1.0},
    "some bases": {"keep": 0.5, "details": 0.1, "attention": 1.0, "head": 0.6},
    "no draft": {"keep": 0.2, "attention": 0.5},
    "nothing": {"keep": 0.0},
}
FOLLOWED = r'\{"a": [0-9]{2,5}, "words": ("none"|"[a-f]{3,9}")\}'
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "seed": 11, "top_k": 0},
    "penalty": {"repetition_penalty": 1.4},
    "sampled, with a penalty": {"temperature": 1.3, "seed": 5, "repetition_penalty": 1.2},
    "penalties of the answer": {"presence_penalty": 0.8, "frequency_penalty": 0.3, "logit_bias": {40: 1.5, 70: -9}},
    "sampled, with those": {"temperature": 0.8, "seed": 3, "presence_penalty": 0.5, "frequency_penalty": 0.5,
                            "logit_bias": {40: 1.5}},
    "followed": {"ignore_eos": False, "max_tokens": 40, "regex": FOLLOWED},
    "followed, forced tokens at once": {"ignore_eos": False, "max_tokens": 40, "regex": FOLLOWED, "logprobs": None},
    "followed and sampled": {"temperature": 1.1, "seed": 9, "ignore_eos": False, "max_tokens": 40, "regex": FOLLOWED,
                             "top_k": 0, "frequency_penalty": 0.5, "logprobs": None},
}


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Llama, or of what a test names instead."""
    folder = write_model(tmp_path_factory.mktemp("speculation") / "model", size=0.2, num_hidden_layers=2,
                         intermediate_size=700, vocab_size=300, hidden_size=64, num_attention_heads=4,
                         **getattr(request, "param", {}))
    convert(str(give_tokenizer(folder)), folder.with_name("m.edge"), "q4")
    return folder.with_name("m.edge")


Load = Callable[..., edgert.Model]


def loading(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(placement, mode): the model, with so much of it in memory."""
    def made(placement: str, mode: str | int, *, context: int = 64, rows: int = 17, chunk: int = 17) -> edgert.Model:
        small_engine.use_plan(monkeypatch, bundle, chunk=chunk, rows=rows, context=context, **PLACEMENTS[placement])
        return edgert.load(bundle, threads=2, context=context, speculation=mode, structured=True)

    return made


@pytest.fixture
def load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    return loading(bundle, monkeypatch)


def pieces(model: edgert.Model, prompt: str | list[int] = PROMPT, **settings: Any) -> list[Piece]:
    return list(model.generate(prompt, **{"max_tokens": 24, "ignore_eos": True, "logprobs": 3, **settings}))


def ids(found: list[Piece]) -> list[int]:
    return [piece.token_id for piece in found if piece.token_id is not None]


@pytest.fixture(scope="module")
def expected(bundle: Path) -> dict[str, list[Piece]]:
    """The answers without speculation, by SETTINGS."""
    with pytest.MonkeyPatch.context() as patched, loading(bundle, patched)("all", "off") as model:
        return {name: pieces(model, **settings) for name, settings in SETTINGS.items()}


USUAL: dict[str, str] = {}
OPT, RELU = {"model_type": "opt"}, {"hidden_act": "relu"}


@pytest.mark.parametrize(("bundle", "placement", "mode", "third"), [
    *((USUAL, placement, mode, (i + j) % 3) for i, placement in enumerate(PLACEMENTS)
      for j, mode in enumerate(("off", "auto", 1, 3, 8, 16))),
    *((other, placement, mode, third % 3) for other in (OPT, RELU) for third, (placement, mode) in enumerate((
        ("all", "auto"), ("bases", 16), ("bases", "auto"), ("some bases", 1), ("no draft", 3), ("nothing", 8))))],
    ids=str, indirect=["bundle"])
def test_the_same_answers(load: Load, expected: dict[str, list[Piece]], placement: str, mode: str | int,
                          third: int) -> None:
    """Tokens, texts and probabilities, greedy and sampled; also the second time, when more is known of the odds. Each
    placement and each mode comes with all of SETTINGS, but with one another only with a third of them."""
    with load(placement, mode) as model:
        for _ in range(2 if mode == "auto" else 1):
            for name in list(SETTINGS)[third::3]:
                model.reset()
                assert pieces(model, **SETTINGS[name]) == expected[name], name


@pytest.mark.parametrize(("rows", "chunk"), [(4, 17), (17, 3), (5, 1)])
def test_where_fewer_go_at_once(load: Load, expected: dict[str, list[Piece]], rows: int, chunk: int) -> None:
    for mode in (16, "auto"):
        with load("bases", mode, rows=rows, chunk=chunk) as model:
            for name in ("greedy", "sampled, with a penalty", "followed, forced tokens at once"):
                assert pieces(model, **SETTINGS[name]) == expected[name], name


def test_guesses_are_made_and_counted(load: Load) -> None:
    with load("bases", 3) as model:
        generation = model.generate(PROMPT, max_tokens=30, ignore_eos=True)
        generation.text()
        s = generation.statistics
        assert s.generated_tokens == 30 and 0 < s.passes <= 29
        assert 0 < s.right <= s.guessed and s.right + s.wrong <= s.guessed
        assert 1 <= s.tokens_per_pass <= 5 and 0 < s.agreement <= 1
        assert s.generated_tokens - 1 <= s.passes + s.right + s.siblings
        assert min(s.draft_s, s.verify_s) > 0 and s.draft_s + s.verify_s <= s.decode_s
    with load("nothing", 3) as model:
        assert not model._engine.drafts
        assert ids(pieces(model))


@pytest.mark.parametrize("mode", [3, 16, "auto"])
def test_so_many_tokens_and_no_more(load: Load, expected: dict[str, list[Piece]], mode: str | int) -> None:
    prompt = len(PROMPT)
    with load("bases", mode) as model:
        for count in range(24):
            found = pieces(model, max_tokens=count)
            assert ids(found) == ids(expected["greedy"])[:count]
            assert found[-1].finish_reason == "length"
            assert not count or model._conversations.current.length == prompt + count - 1
            assert not count or model._conversations.current.tokens[prompt:] == ids(found)[:-1]


@pytest.mark.parametrize("mode", [1, 8, "auto"])
def test_a_full_context(load: Load, mode: str | int) -> None:
    """The last chain ends where the context does."""
    for context in range(24, 34):
        with load("all", "off", context=context) as model:
            want = pieces(model, max_tokens=None)
        with load("bases", mode, context=context) as model:
            assert pieces(model, max_tokens=None) == want
            assert model._conversations.current.length == context == len(PROMPT) + len(ids(want)) - 1
            assert pieces(model, max_tokens=None) == want


@pytest.mark.parametrize("mode", [3, 8, "auto"])
def test_the_end_of_text_within_a_chain(load: Load, expected: dict[str, list[Piece]],
                                        monkeypatch: pytest.MonkeyPatch, mode: str | int) -> None:
    """At any token of the answer: what follows it was checked, and is not part of it."""
    whole = ids(expected["sampled"])
    with load("bases", mode) as model:
        for end in dict.fromkeys(whole):
            with monkeypatch.context() as patch:
                patch.setattr(model.tokenizer, "eos_token_ids", (end,))
                found = pieces(model, ignore_eos=False, **SETTINGS["sampled"])
            assert ids(found) == whole[:whole.index(end)] and found[-1].finish_reason == "stop"
            assert model._conversations.current.tokens == [*model.tokenizer.encode(PROMPT), *whole[:whole.index(end)]]
        assert pieces(model, **SETTINGS["sampled"]) == expected["sampled"]


@pytest.mark.parametrize("mode", [8, "auto"])
def test_stop_strings(load: Load, mode: str | int) -> None:
    settings = {**SETTINGS["sampled"], "logprobs": None, "max_tokens": 40}
    with load("all", "off") as model:
        text = "".join(piece.text for piece in pieces(model, **settings))
        every = [stop for at in range(1, len(text)) for stop in (text[at], text[at:at + 2])]
        stops = [stop for stop in every if "\ufffd" not in stop][:16]
        want = [pieces(model, stop=stop, **settings) for stop in stops]
    assert len(stops) > 5
    with load("bases", mode) as model:
        for stop, each in zip(stops, want, strict=True):
            assert pieces(model, stop=stop, **settings) == each
            assert each[-1].finish_reason == "stop"


@pytest.mark.parametrize("mode", [5, "auto"])
def test_closed_between_pieces_and_gone_on(load: Load, mode: str | int) -> None:
    """After any piece: a chain's other tokens are in the session, which the next prompt cuts to what it shares."""
    with load("all", "off") as plain, load("bases", mode) as model:
        for count in range(1, 14):
            generation = model.generate(PROMPT, max_tokens=20, ignore_eos=True, temperature=0.8, seed=count)
            taken = [next(generation).token_id for _ in range(count)]
            generation.close()
            prompt = [*model.tokenizer.encode(PROMPT), *(t for t in taken if t is not None),
                      *model.tokenizer.encode(" and")]
            assert pieces(model, prompt, max_tokens=8) == pieces(plain, prompt, max_tokens=8)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("when", [0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 15, 19])
def test_ctrl_c_while_drafting_and_while_checking(load: Load, expected: dict[str, list[Piece]],
                                                  monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """At each of the first runs of the kernels in turn: the session stays whole, the next answer is the same."""
    monkeypatch.setattr(worker, "_AFTER_CANCEL_S", 5.0)
    with load("some bases", 3) as model:
        team, main, numbers = model._engine._team, threading.main_thread().ident, itertools.count()
        run = team.run
        assert main is not None

        def interrupted(program: np.ndarray) -> bool:
            if next(numbers) == when:
                signal.pthread_kill(main, signal.SIGINT)
                deadline = time.monotonic() + 10
                while team._flag[0] != CANCELLED and time.monotonic() < deadline:
                    time.sleep(0.001)
            return run(program)

        monkeypatch.setattr(team, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pieces(model)
        monkeypatch.setattr(team, "run", run)
        tokens = [*model.tokenizer.encode(PROMPT), *ids(expected["greedy"])]
        session = model._conversations.current
        assert session.tokens == tokens[:session.length], "no guess is left in it"
        for name in ("greedy", "sampled", "followed"):
            assert pieces(model, **SETTINGS[name]) == expected[name]


@pytest.mark.parametrize("fault", ["error", "flip"])
def test_reads_that_fail_while_answering(load: Load, expected: dict[str, list[Piece]],
                                         monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """One sentence, and the session has nothing but what the exact model chose."""
    files: list[FaultyFile] = []

    def faulty(path: Path) -> FaultyFile:
        files.append(FaultyFile(path, -1, fault))
        return files[-1]

    monkeypatch.setattr(opening, "FlashFile", faulty)
    failed = 0
    for number in range(0, 90, 9):
        with load("some bases", 3) as model:
            files[-1].fail_at = files[-1].reads + number
            generation = model.generate(PROMPT, max_tokens=24, ignore_eos=True)
            try:
                generation.text()
            except edgert.EdgertError as error:
                failed += 1
                assert "\n" not in str(error) and ("checksum" in str(error) or "reading" in str(error))
            assert generation.token_ids == ids(expected["greedy"])[:len(generation.token_ids)]
            tokens = [*model.tokenizer.encode(PROMPT), *ids(expected["greedy"])]
            assert model._conversations.current.tokens == tokens[:model._conversations.current.length]
    assert failed > 3


def test_drafts_change_nothing_that_is_computed_later(load: Load, expected: dict[str, list[Piece]],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the draft says: here always the worst."""
    draft = Engine.draft

    def worst(self: Engine, *arguments: Any, **options: Any) -> np.ndarray:
        return -draft(self, *arguments, **options)

    monkeypatch.setattr(Engine, "draft", worst)
    with load("bases", 8) as model:
        for name, settings in SETTINGS.items():
            assert pieces(model, **settings) == expected[name]


def test_a_draft_is_made_as_long_as_it_pays(load: Load) -> None:
    """Against the seconds of a draft, and the chance that those before it are right."""
    with load("bases", "auto") as model:
        speculator = model._speculator
        speculator._costs.checked(1, 1.0)
        for seconds, pays in ((0.01, True), (100.0, False)):
            for _ in range(60):
                speculator._costs.drafted(seconds)
            assert speculator._pays(_Guesses(), [1, 2, 3], Lookup()) == pays
            assert not speculator._pays(_Guesses(alive=1e-9), [1, 2, 3], Lookup())


@pytest.mark.parametrize("mode", ["", "on", "0", "17", 0, 17, -1, True, 1.5, None, "8.0", "-1", "AUTO"])
def test_modes_that_are_none(mode: Any) -> None:
    with pytest.raises(edgert.ModelError, match=r"^speculation is .*; give off, auto, or a number of tokens") as raised:
        parse(mode)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("mode", "meant"), [("off", "off"), ("auto", "auto"), ("8", 8), (1, 1), (16, 16)])
def test_modes(mode: str | int, meant: str | int) -> None:
    assert parse(mode) == meant
