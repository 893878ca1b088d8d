"""Encoding, decoding and streaming, with a byte-level vocabulary and a SentencePiece-style one."""

import codecs
import json
import random
import threading
import time
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from edgert.errors import ModelError
from edgert.text import bpe as module
from edgert.text.bpe import BpeTables
from edgert.text.tokenizer import LONGEST_TEXT, StreamDecoder, Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> tokenizers.Tokenizer:
    """The 256 bytes, some merges within and across characters, a special token and an added one."""
    vocabulary = {character: index for index, character in enumerate(ALPHABET)}
    merges = [("Ġ", "a"), ("a", "b"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("Ŀ", "ð")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<é>", special=False, normalized=False)])
    return tokenizer


def sentencepiece() -> tokenizers.Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdé你", "▁a", "▁ab", "ab"]
    merges = [("a", "b"), ("▁", "a"), ("▁a", "b")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)},
                                                merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    return tokenizer


BYTES = Tokenizer.from_json(byte_level().to_str(), bos_token_id=3, eos_token_ids=[261])
PIECES = Tokenizer.from_json(sentencepiece().to_str(), bos_token_id=1, eos_token_ids=[2], add_bos_token=True)
END = BYTES.encode("<|end|>")[0]
both = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])

valid_text = st.text(st.characters(exclude_categories=["Cs"]))
mixed_text = st.lists(valid_text | st.sampled_from(["<|end|>", "<é>", "ab", " a", "😀", "👨‍👩‍👧"])).map("".join)


def stream(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = tokenizer.stream_decoder(**options)
    return [*(decoder.push(index) for index in ids), decoder.flush()]


@given(mixed_text, st.booleans())
def test_text_survives_bytes(text: str, special: bool) -> None:
    assert BYTES.decode(BYTES.encode(text, special=special)) == text


@given(valid_text.filter(lambda text: "▁" not in text))
def test_text_survives_pieces(text: str) -> None:
    ids = PIECES.encode(text, special=False, add_bos=False)
    assert PIECES.decode(ids) == text == PIECES._tokenizer.decode(ids, skip_special_tokens=False)


@given(st.lists(st.integers(0, BYTES.vocab_size + 3)), st.booleans())
def test_stream_is_decode_of_bytes(ids: list[int], skip_special: bool) -> None:
    pieces = stream(BYTES, ids, skip_special=skip_special)
    assert "".join(pieces) == BYTES.decode(ids, skip_special=skip_special)


@given(st.lists(st.integers(0, PIECES.vocab_size + 3)), st.booleans())
def test_stream_is_decode_of_pieces(ids: list[int], skip_special: bool) -> None:
    pieces = stream(PIECES, ids, skip_special=skip_special)
    assert "".join(pieces) == PIECES.decode(ids, skip_special=skip_special)


@given(st.lists(st.integers(0, len(ALPHABET) - 1)))
def test_stream_gives_whatever_is_certain(ids: list[int]) -> None:
    decoder = StreamDecoder(BYTES)
    reference = codecs.getincrementaldecoder("utf-8")("replace")
    for index in ids:
        assert decoder.push(index) == reference.decode(BYTES.token_bytes(index))


@given(st.lists(st.integers(0, BYTES.vocab_size - 3)))
def test_decode_is_the_librarys(ids: list[int]) -> None:
    assert BYTES.decode(ids) == BYTES._tokenizer.decode(ids, skip_special_tokens=False)


def test_stream_never_gives_half_a_character() -> None:
    ids = BYTES.encode("é😀👨‍👩‍👧")
    pieces = stream(BYTES, ids)
    assert "".join(pieces) == "é😀👨‍👩‍👧"
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream(BYTES, ids[:-1])[-1] == "\ufffd"


def test_stream_decoder_can_be_used_again() -> None:
    decoder = PIECES.stream_decoder()
    ids = PIECES.encode("ab 你", add_bos=False)
    for _ in range(2):
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == "ab 你"


def test_streaming_takes_linear_time() -> None:
    ids = BYTES.encode("abc 😀 " * 5000)

    def seconds(count: int) -> float:
        start = time.perf_counter()
        stream(BYTES, ids[:count])
        return time.perf_counter() - start

    few = min(seconds(2000) for _ in range(3))
    assert min(seconds(20000) for _ in range(3)) < 40 * few


def test_special_tokens_in_plain_text() -> None:
    text = "a<|end|>b"
    assert END in BYTES.encode(text)
    assert END not in BYTES.encode(text, special=False)
    assert END in BYTES.encode(text)
    assert BYTES.decode(BYTES.encode(text, special=False)) == text
    assert PIECES.special_ids.isdisjoint(PIECES.encode("<s>a</s>", special=False, add_bos=False))


def test_special_setting_holds_between_threads() -> None:
    wrong: list[bool] = []

    def encode(special: bool) -> None:
        for _ in range(500):
            if (END in BYTES.encode("a<|end|>b", special=special)) != special:
                wrong.append(special)

    threads = [threading.Thread(target=encode, args=(special,)) for special in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_plain_text_that_still_becomes_special_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["ab"])
    with pytest.raises(ModelError, match="special token"):
        Tokenizer(tokenizer).encode("ab", special=False)
    with pytest.raises(ModelError, match="special token"):
        Tokenizer(tokenizer).encode("ab", given=b"\1\1")
    monkeypatch.setattr(module, "MERGES_IN_FRONT", 0)  # all merges are ours
    with pytest.raises(ModelError, match="special token"):
        Tokenizer.from_json(tokenizer.to_str()).encode("ab", given=b"\1\1")


def test_bos() -> None:
    assert BYTES.encode("a") == BYTES.encode("a", add_bos=False)
    assert BYTES.encode("a", add_bos=True) == [3, *BYTES.encode("a")]
    assert PIECES.encode("a") == [1, *PIECES.encode("a", add_bos=False)]
    assert PIECES.encode("") == [1]
    with pytest.raises(ModelError, match="no BOS"):
        Tokenizer(byte_level()).encode("a", add_bos=True)


def test_ids_and_tokens() -> None:
    assert BYTES.vocab_size == 256 + 5 + 2
    assert BYTES.id_to_token(END) == "<|end|>"
    assert BYTES.id_to_token(99999) is None
    assert BYTES.token_bytes(99999) == b""
    assert BYTES.token_bytes(BYTES.encode("<é>")[0]) == "<é>".encode()
    assert BYTES.token_bytes(ALPHABET.index("Ġ")) == b" "
    assert PIECES.token_bytes(3 + 0xE4) == b"\xe4"
    assert PIECES.decode([1, *PIECES.encode("a b", add_bos=False), 2], skip_special=True) == "a b"


@both
@pytest.mark.parametrize("index", [-1, 1 << 32, -(1 << 70), 1 << 70])
def test_impossible_ids(tokenizer: Tokenizer, index: int) -> None:
    with pytest.raises(ModelError, match="no token id"):
        tokenizer.decode([index])


@both
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udcff"])
def test_lone_surrogates(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ModelError, match="cannot be tokenized"):
        tokenizer.encode(text)


def test_endless_text() -> None:
    with pytest.raises(ModelError, match="shorten"):
        BYTES.encode(" " * (LONGEST_TEXT + 1))


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"model": {"type": "BPE", "vocab": {}}}', "\ud800",
                                  byte_level().to_str()[:-20], '{"version": "1.0"' + "[" * 100_000])
def test_damaged_json(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_json(text)
    assert "\n" not in str(caught.value)


def test_unknown_decoder() -> None:
    with pytest.raises(ModelError, match="neither"):
        Tokenizer.from_json(tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a")).to_str())


def test_no_token_for_what_is_unknown() -> None:
    with pytest.raises(ModelError, match=r"cannot be read: WordLevel error: Missing \[UNK\] token"):
        Tokenizer.from_json(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="?")).to_str())


def test_settings_for_training_are_ignored() -> None:
    library = byte_level()
    library.enable_truncation(2)
    library.enable_padding(length=8)
    assert len(Tokenizer.from_json(library.to_str()).encode("xyz")) == 3


def grown(seed: int, *, ordered: bool, **settings: Any) -> tokenizers.Tokenizer:
    """Merges of random pairs, each a new token; unless ordered, a token may be made later than it is merged again."""
    source = random.Random(seed)
    vocabulary = {character: index for index, character in enumerate(ALPHABET)}
    tokens, merges = list("abcĠ"), []
    for _ in range(150):
        left, right = source.choice(tokens), source.choice(tokens)
        if left + right not in vocabulary and len(left + right) < 12:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
            tokens.append(left + right)
    if not ordered:
        source.shuffle(merges)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **settings))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def old_merges(text: str) -> str:
    values = json.loads(text)
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]
    return json.dumps(values, indent=2)


@pytest.mark.parametrize("in_front", [0, 7, 4096])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("ignore_merges", [True, False])
@pytest.mark.parametrize("write", [str, old_merges])
def test_merging_is_the_librarys(in_front: int, ordered: bool, ignore_merges: bool, write: Any,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGES_IN_FRONT", in_front)
    for seed in range(4):
        library = grown(seed, ordered=ordered, ignore_merges=ignore_merges)
        text = write(library.to_str())
        ours = Tokenizer.from_json(text)
        assert ours._tables is not None
        assert ours.vocab_size == library.get_vocab_size()
        assert [ours.id_to_token(i) for i in range(999)] == [library.id_to_token(i) for i in range(999)]
        source = random.Random(seed)
        for length in (*range(12), 3000):
            sample = "".join(source.choices(["a", "b", "c", " ", "d", "é", "<|end|>"], [9, 9, 9, 3, 1, 1, 1], k=length))
            ids = library.encode(sample, add_special_tokens=False).ids
            assert ours.encode(sample) == ids
            assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("in_front", [0, 1, 4096])
@given(text=mixed_text)
def test_pieces_are_the_librarys(in_front: int, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MERGES_IN_FRONT", in_front)
        ours = Tokenizer.from_json(sentencepiece().to_str())
    assert ours._tables is not None
    assert ours.encode(text) == sentencepiece().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("change", [
    {"dropout": 0.0}, {"unk_token": "<|end|>"}, {"continuing_subword_prefix": "#", "merges": []},
    {"end_of_word_suffix": "$"}, {"merges": []}, {"merges": [["a", "b"], ["Ġ", "a"], ["a", "b"]]},
    {"ignore_merges": True}, {"vocab": {"a": 0, "b": 1, "ab": 10_000_000}, "merges": [["a", "b"]]},
    {"merges": ["#version a", "a b"]}], ids=str)
def test_strange_settings_are_left_to_the_library(change: dict[str, Any]) -> None:
    values = json.loads(byte_level().to_str())
    values["model"] |= change
    text = json.dumps(values)
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception:
        with pytest.raises(ModelError):
            Tokenizer.from_json(text)
        return
    ours = Tokenizer.from_json(text.encode())
    for sample in ("ab ab", "a", "aab<|end|>", "bab<é>"):
        try:
            ids = library.encode(sample, add_special_tokens=False).ids
        except Exception:
            with pytest.raises(ModelError):
                ours.encode(sample)
            continue
        assert ours.encode(sample) == ids
        assert [ours.id_to_token(i) for i in ids] == [library.id_to_token(i) for i in ids]


@pytest.mark.parametrize("damage", [
    lambda text: text.replace('["a","b"]', '["a","zz"]'), lambda text: text.replace('["a","b"]', '["a" "b"]'),
    lambda text: text.replace('"a":', '"\\ud800":'), lambda text: text.replace('"merges":[[', '"merges":[[],['),
    lambda text: text.replace('"a":', '"a":-'), lambda text: text.replace('"!":0', '"!":1'),
    lambda text: text.replace('"id":', '"id":1')])
def test_damage_is_left_to_the_library(damage: Any) -> None:
    text = damage(byte_level().to_str())
    assert text != byte_level().to_str()
    assert BpeTables.read(text.encode()) is None


def test_a_vocabulary_of_added_tokens_alone_is_read_in_linear_time() -> None:
    compared = 0

    class Id(int):
        def __gt__(self, other: int) -> bool:
            nonlocal compared
            compared += 1
            return int.__gt__(self, other)

        def __lt__(self, other: int) -> bool:
            return Id.__gt__(Id(other), self)

    names = [f"<{index}>" for index in range(1000)]
    ids = {name.encode(): Id(index) for index, name in enumerate(names)}
    added = [{"content": name, "id": index} for index, name in enumerate(names)]
    assert list(module._added_ids(added, ids).values()) == list(range(1000))  # type: ignore[arg-type]
    assert compared < 10_000
