"""Token ids equal llama.cpp's, as recorded by tests/golden/make_tokens.py, and damaged metadata is refused."""

import hashlib
import json
import sys
from array import array
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from edgert.converters.gguf_header import read_header
from edgert.converters.gguf_splits import SPLITS, WHOLE_WORDS
from edgert.converters.gguf_tokenizer import LONGEST_PIECE, tokenizer_from_gguf
from edgert.errors import SourceError
from edgert.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
_spec = spec_from_file_location("golden_texts", GOLDEN / "texts.py")
assert _spec and _spec.loader
texts = module_from_spec(_spec)
_spec.loader.exec_module(texts)

VOCABULARIES = ["smollm2", pytest.param("qwen", marks=pytest.mark.reference),
                pytest.param("gemma", marks=pytest.mark.reference), "spm", "spm-no-prefix"]


def digest(ids: list[int]) -> dict[str, Any]:
    """As make_tokens.py makes it."""
    values = array("I", ids)
    if sys.byteorder == "big":
        values.byteswap()
    return {"count": len(ids), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}


@pytest.fixture(scope="module", params=VOCABULARIES)
def model(request: pytest.FixtureRequest) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """The tokenizer, its generation settings and the golden record."""
    name = request.param
    path = GOLDEN / f"{name}.gguf" if name.startswith("spm") else request.getfixturevalue(f"{name}_gguf")
    text, generation = tokenizer_from_gguf(read_header(path).metadata)
    return Tokenizer.from_json(text, **generation), generation, json.loads((GOLDEN / f"tokens-{name}.json").read_text())


@pytest.mark.parametrize("text", texts.TEXTS)
@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_ids_are_llama_cpps(model: tuple[Tokenizer, Any, dict[str, Any]], text: str, special: bool) -> None:
    tokenizer, _, golden = model
    ids = tokenizer.encode(texts.TEXTS[text], special=special, add_bos=False)
    assert ids == golden["special" if special else "plain"][text]


@pytest.mark.parametrize(("size", "name"), [(100_000, "shorter"), pytest.param(
    1_000_000, "long", marks=pytest.mark.reference)])
@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_ids_of_a_long_text(model: tuple[Tokenizer, Any, dict[str, Any]], special: bool, size: int, name: str) -> None:
    tokenizer, _, golden = model
    if name not in golden:
        pytest.skip("llama.cpp's ids of the shorter text are not recorded for this vocabulary")
    ids = tokenizer.encode(texts.long_text(size), special=special, add_bos=False)
    assert digest(ids) == golden[name]["special" if special else "plain"]


@pytest.mark.parametrize("text", texts.TEXTS)
def test_decode_gives_the_text_back(model: tuple[Tokenizer, Any, Any], text: str) -> None:
    tokenizer = model[0]
    expected = texts.TEXTS[text] if tokenizer._byte_level else texts.TEXTS[text].replace("▁", " ")
    assert tokenizer.decode(tokenizer.encode(texts.TEXTS[text], special=False, add_bos=False)) == expected or (
        text == "spm_specials")  # each user-defined token makes llama.cpp add a space after it


def test_generation_is_llama_cpps(model: tuple[Tokenizer, dict[str, Any], dict[str, Any]]) -> None:
    _, generation, golden = model
    assert sorted(generation["eos_token_ids"]) == golden["eog"]
    assert generation["eos_token_ids"][0] == golden["eos"]
    assert generation["bos_token_id"] == golden["bos"]
    assert generation["add_bos_token"] == golden["add_bos"]


def byte_level(**changes: Any) -> dict[str, Any]:
    tokens = [*sorted(ByteLevel.alphabet()), "ab", "<|x|>", "<y>", "<|im_end|>"]
    metadata = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": ["a b"],
                "token_type": [1] * 257 + [3, 4, 1], "eos_token_id": 257}
    return named({**metadata, **changes})


def sentencepiece(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "</", "s>", "s", "<", "/", ">", "▁"]
    metadata = {"model": "llama", "tokens": tokens, "scores": [0.0] * 3 + [-float(i) for i in range(len(tokens) - 3)],
                "token_type": [2, 3, 3] + [6] * 256 + [1] * 7}
    return named({**metadata, **changes})


def named(metadata: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def test_token_types() -> None:
    text, generation = tokenizer_from_gguf(byte_level())
    tokenizer = Tokenizer.from_json(text, **generation)
    assert tokenizer.encode("ab<|x|><y>") == [256, 257, 258]
    plain = tokenizer.encode("<|x|><y>", special=False)
    assert 257 not in plain
    assert 258 in plain  # as in llama.cpp
    assert generation == {"bos_token_id": None, "eos_token_ids": [257, 259], "add_bos_token": False}
    assert tokenizer.special_ids == {257, 259}  # a token that ends a generation is special whatever its type says


def test_llama_cpp_would_merge_plain_text_to_control_tokens() -> None:
    text, generation = tokenizer_from_gguf(sentencepiece())
    tokenizer = Tokenizer.from_json(text, **generation)
    assert tokenizer.encode("</s>", special=False, add_bos=False) == [265, 259, 260]  # ▁ </ s>, and not </s>
    assert tokenizer.encode("</s>", add_bos=False) == [2]
    assert generation == {"bos_token_id": 1, "eos_token_ids": [2], "add_bos_token": True}


@pytest.mark.parametrize(("name", "ids"), [("Phi 3", [2, 265, 261, 2]), ("Phi-3 mini", [2, 261, 2]),
                                           ("my_phi3", [2, 261, 2])])
def test_phi_3_strips_behind_its_tokens(name: str, ids: list[int]) -> None:
    """As llama.cpp does by the model's name (llama-vocab.cpp); `make_tokens.py` has no such model."""
    metadata = {**sentencepiece(add_space_prefix=False), "general.name": name}
    tokenizer = Tokenizer.from_json(tokenizer_from_gguf(metadata)[0])
    assert tokenizer.encode("</s> s</s>  ", add_bos=False)[:len(ids)] == ids


def test_defaults_of_llama_3() -> None:
    with pytest.raises(SourceError, match="BOS"):
        tokenizer_from_gguf(byte_level(pre="llama-bpe"))
    text, generation = tokenizer_from_gguf(byte_level(pre="llama-bpe", bos_token_id=258, merges=["a b"][:0]))
    assert generation["add_bos_token"]
    assert Tokenizer.from_json(text).encode("ab") == [256]  # whole words come before merges
    assert not tokenizer_from_gguf(byte_level(pre="llama-bpe", add_bos_token=False))[1]["add_bos_token"]


WORDS = json.loads((GOLDEN / "tokens-words.json").read_text())
LONG = texts.long_text(50_000)
ALIKE: dict[tuple[Any, ...], list[str]] = {}
for known, patterns in SPLITS.items():
    ALIKE.setdefault((patterns, known in WHOLE_WORDS), []).append(known)


def test_all_pre_tokenizers_are_compared() -> None:
    assert WORDS.keys() == SPLITS.keys()


@pytest.mark.parametrize("alike", ALIKE.values(), ids=lambda names: names[0])
def test_words_are_llama_cpps(alike: list[str]) -> None:
    """The vocabulary's merges join what pre-tokenizers part, so that other words have other ids."""
    metadata = {**read_header(GOLDEN / "bpe.gguf").metadata, "tokenizer.ggml.pre": alike[0]}
    text, generation = tokenizer_from_gguf(metadata)
    tokenizer = Tokenizer.from_json(text, **generation)
    ids = [index for source in (*texts.TEXTS.values(), LONG) for index in tokenizer.encode(source, add_bos=False)]
    assert [WORDS[name] for name in alike] == [digest(ids)] * len(alike)
    assert tokenizer.decode(ids) == "".join([*texts.TEXTS.values(), LONG])


def test_empty_and_repeated_entries_as_in_llama_cpp() -> None:
    tokens = byte_level()["tokenizer.ggml.tokens"]
    text, _ = tokenizer_from_gguf(byte_level(tokens=[*tokens[:-1], ""], merges=["a b", "a b"]))
    assert Tokenizer.from_json(text).id_to_token(len(tokens) - 1) == f"[EMPTY_{len(tokens) - 1}]"


TOKENS = byte_level()["tokenizer.ggml.tokens"]
PIECES = sentencepiece()["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(("metadata", "message"), [
    ({}, "kind None"),
    (byte_level(model="bert"), "kind 'bert'"),
    (byte_level(model=["gpt2"]), "kind"),
    (byte_level(pre="new-thing"), "pre-tokenizer 'new-thing' is not known"),
    (byte_level(pre=7), "pre-tokenizer 7"),
    (byte_level(tokens=None), "tokens is missing"),
    (byte_level(tokens=[]), "empty"),
    (byte_level(tokens="abc"), "list of strings"),
    (byte_level(tokens=[*TOKENS[:-1], 5]), "list of strings"),
    (byte_level(tokens=[*TOKENS[:-1], b"x"]), "list of strings"),
    (byte_level(tokens=[*TOKENS[:-1], "\ud800"]), "Unicode"),
    (byte_level(tokens=[*TOKENS[:-1], "a"]), "'a' twice"),
    (byte_level(merges=None), "merges is missing"),
    (byte_level(merges=["a b", 3]), "list of strings"),
    (byte_level(merges=["ab"]), "Merge 0"),
    (byte_level(merges=["a b", "a c"]), "Merge 1 .*'a c'"),
    (byte_level(merges=["a nothing"]), "Merge 0"),
    (byte_level(merges=[""]), "Merge 0"),
    (byte_level(token_type=[1]), "token_type"),
    (byte_level(token_type=["1"] * len(TOKENS)), "token_type"),
    (byte_level(eos_token_id=len(TOKENS)), "eos_token_id is 260, which is no id"),
    (byte_level(eos_token_id=-1), "eos_token_id"),
    (byte_level(bos_token_id="1"), "bos_token_id"),
    (byte_level(eot_token_id=True), "eot_token_id"),
    (byte_level(fim_pad_token_id=1 << 40), "fim_pad_token_id"),
    (byte_level(add_bos_token="yes"), "add_bos_token"),
    (byte_level(add_bos_token=True), "BOS"),
    (sentencepiece(scores=None), "scores"),
    (sentencepiece(scores=[0.0]), "scores"),
    (sentencepiece(scores=[float("nan")] * len(PIECES)), "scores"),
    (sentencepiece(scores=["0"] * len(PIECES)), "scores"),
    (sentencepiece(tokens=[*PIECES[:10], "xx", *PIECES[11:]]), "byte token <0x07>"),
    (sentencepiece(tokens=[*PIECES[:-1], "x" * (LONGEST_PIECE + 1)]), "1025 characters"),
    (sentencepiece(add_space_prefix=1), "add_space_prefix"),
])
def test_damaged_metadata(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        tokenizer_from_gguf(metadata)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(
    st.text(max_size=3) | st.integers(-2, 5) | st.floats(), max_size=5)
KEYS = ["model", "pre", "tokens", "merges", "scores", "token_type", "bos_token_id", "eos_token_id", "eot_token_id",
        "add_bos_token", "add_space_prefix"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([byte_level, sentencepiece]), st.dictionaries(st.sampled_from(KEYS), anything))
def test_any_metadata_builds_or_is_refused(base: Any, changes: dict[str, Any]) -> None:
    try:
        text, generation = tokenizer_from_gguf(base(**changes))
    except SourceError:
        return
    Tokenizer.from_json(text, **generation).encode("ab </s> é", add_bos=False)
