"""A long text is tokenized part by part: the same ids as the library's of the whole, and little memory."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from edgert.converters.gguf_splits import SPLITS
from edgert.errors import ModelError
from edgert.text import text_borders, tokenizer
from edgert.text.text_borders import LONGEST_WORD, Borders
from edgert.text.tokenizer import Tokenizer

PATTERNS = {
    **SPLITS,
    "llama3_hf": (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                  r"\s*[\r\n]+|\s+(?!\S)|\s+",),
    "o200k": (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
              r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
              r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
              r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
              r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    "deepseek_hf": (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
                    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" "\r\n"
                    r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
                    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|" r"\s+(?!\S)|\s+"),
}
ADDED = [AddedToken("<|a_b|>", special=True, normalized=False), AddedToken("x y", special=False, normalized=False),
         AddedToken("<t>", special=True, normalized=False, rstrip=True), AddedToken("\n\n", normalized=False),
         AddedToken("<l1>", special=True, normalized=False, lstrip=True)]
ALPHABET = "▁abS's 019  \n\r\t.,!<|_>-(){}\"'é你好。、ぁ한́　\xa0\x1c\x85'll't￿À٠²"
NEWLINES = [AddedToken("\n" * count, special=False, normalized=False) for count in (1, 2, 3)]
texts = st.lists(st.text(ALPHABET, max_size=8) | st.sampled_from([token.content for token in ADDED]),
                 max_size=20).map("".join)


WHOLE = {"bloom", "deepseek-coder", "deepseek-llm", "exaone-moe", "gpt3-finnish", "jais-2", "laguna", "poro-chat",
         "viking"}
"""Their words go on past spaces, or those of white space alone are cut at other lengths (Jais 2)."""
ALIKE: dict[tuple[str, ...], list[str]] = {}
for known, patterns in PATTERNS.items():
    ALIKE.setdefault(patterns, []).append(known)


def grown(library: tokenizers.Tokenizer, alphabet: list[str], seed: int, seams: str) -> list[tuple[str, str]]:
    """Merges of random pairs of whatever stands side by side in some texts after the library's own preparation."""
    source = random.Random(seed)
    merges: list[tuple[str, str]] = []
    known = set(alphabet)
    tokens = [character for character in alphabet if character in seams]
    while len(merges) < 120:
        left, right = source.choice(tokens), source.choice(tokens)
        if left + right not in known and len(left + right) < 7 and not ("▁" in right[1:] or (
                right[0] == "▁" and left.strip("▁"))):
            known.add(left + right)
            merges.append((left, right))
            tokens.append(left + right)
    return merges


def byte_level(splits: tuple[str, ...], *, use_regex: bool = False, prefix: bool = False,
               normalizer: Any = None) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(models.BPE())
    merges = grown(library, alphabet, len(splits), "abSĠĊ.'01<|Ã©ä½")
    library.model = models.BPE(vocab={name: i for i, name in enumerate([*alphabet, *map("".join, merges)])},
                               merges=merges)
    library.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits),
        pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)])
    if normalizer is not None:
        library.normalizer = normalizer
    library.decoder = decoders.ByteLevel()
    library.add_tokens(ADDED)
    return library


def sentencepiece(front: str) -> tokenizers.Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = ["<unk>", "▁", *"abS.,01你<|_>xyt"]
    library = tokenizers.Tokenizer(models.BPE())
    merges = grown(library, alphabet, 3, "▁abS.01你<|xy")
    if front == "gemma3":  # and tokens that have a space inside, as its ">▁</"
        inside = [("▁", "b"), ("a", "▁b"), ("S", "▁")]
        merges = [*inside, *(merge for merge in merges if "".join(merge) != "▁b")]
    newlines = [token.content for token in NEWLINES]
    names = [*alphabet, *bytes_, *newlines, *map("".join, merges)]
    library.model = models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges, byte_fallback=True,
                               unk_token="<unk>")
    replace = normalizers.Replace(" ", "▁")
    if front == "prepend":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif front == "gemma":
        library.normalizer = replace
        library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif front in ("none", "gemma3"):
        library.normalizer = replace
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=front, split=front == "always")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_tokens([*ADDED[:2], *NEWLINES] if front == "gemma3" else ADDED)
    return library


def unigram() -> tokenizers.Tokenizer:
    """SentencePiece's other kind: pieces of known probability, and one token for characters that are in none."""
    source = random.Random(5)
    pieces = {"".join(source.choices("abS.,01|_xy", k=source.randint(2, 4))) for _ in range(80)}
    names = ["▁", *"abS.,01|_xyt", *sorted(pieces), *(f"▁{piece}" for piece in sorted(pieces)[:40])]
    library = tokenizers.Tokenizer(models.Unigram(
        [("<unk>", 0.0), *((name, -source.uniform(2, 9)) for name in names)], unk_id=0, byte_fallback=False))
    library.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    library.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    library.add_tokens(ADDED)
    return library


LIBRARIES = {
    "unigram": unigram(),
    **{names[-1]: byte_level(splits) for splits, names in ALIKE.items()},
    "gpt2_regex": byte_level((), use_regex=True), "prefix_space": byte_level((), use_regex=True, prefix=True),
    "nfc": byte_level(PATTERNS["llama3_hf"], normalizer=normalizers.NFC()),
    **{front: sentencepiece(front) for front in ("prepend", "gemma", "gemma3", "none", "first", "always",
                                                 "never")},
}


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "library"])
@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=150)
@given(text=texts, part=st.integers(2, 12))
def test_ids_are_those_of_the_whole(name: str, tables: bool, text: str, part: int) -> None:
    library = LIBRARIES[name]
    ours = Tokenizer.from_json(library.to_str()) if tables else Tokenizer(
        tokenizers.Tokenizer.from_str(library.to_str()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_borders, "PART", part)
        patch.setattr(tokenizer, "PART", part)
        for special in (True, False):
            library.encode_special_tokens = not special
            expected = library.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, special=special, add_bos=False) == expected


@pytest.mark.parametrize("name", [name for name in LIBRARIES if name not in WHOLE])
def test_every_known_kind_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_borders, "PART", 8)
    ours = Tokenizer.from_json(LIBRARIES[name].to_str())
    assert len(list(ours._borders.parts("ba ab ab ab ab ab ab ab ab"))) >= 3


def test_newlines_are_borders_where_they_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_borders, "PART", 8)
    parts = {front: len(list(Tokenizer.from_json(LIBRARIES[front].to_str())._borders.parts("你你你\n" * 9)))
             for front in ("gemma3", "none")}
    assert parts == {"gemma3": 8, "none": 1}


def test_no_border_is_inside_a_token_with_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_borders, "PART", 8)
    monkeypatch.setattr(tokenizer, "PART", 8)
    library = LIBRARIES["gemma3"]
    for text in ("tta bttt" * 9, "tS ttt t" * 9):
        ids = library.encode(text, add_special_tokens=False).ids
        assert any("▁" in library.id_to_token(index)[1:] for index in ids)
        assert Tokenizer.from_json(library.to_str()).encode(text, add_bos=False) == ids


@pytest.mark.parametrize("library", [
    byte_level((), use_regex=False), byte_level((r"\p{N}",)), byte_level((r".{7}|\s+",)),
    byte_level(PATTERNS["qwen2"], normalizer=normalizers.NFKC()),
    byte_level(PATTERNS["qwen2"], normalizer=normalizers.Replace("a", "b"))])
def test_others_are_taken_whole(library: tokenizers.Tokenizer) -> None:
    assert Borders(library, None)._border is None
    library = byte_level(PATTERNS["qwen2"])
    library.add_tokens([AddedToken("one", single_word=True)])
    assert Borders(library, None)._border is None


def test_an_endless_word_is_refused() -> None:
    ours = Tokenizer(byte_level(PATTERNS["qwen2"]))
    assert len(ours.encode("a" * LONGEST_WORD)) > 100
    with pytest.raises(ModelError, match=f"^The text has more than {LONGEST_WORD} characters in a row"):
        ours.encode("ab " * 10_000 + "a" * 2 * LONGEST_WORD)


MEASURE = """
import sys
from edgert.text.tokenizer import Tokenizer
def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
tokenizer = Tokenizer.from_json(open(sys.argv[1]).read())
text = sys.stdin.read()
tokenizer.encode("hello")
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
assert len(tokenizer.encode(text)) > 100_000
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count of memory")
@pytest.mark.parametrize("name", ["gpt2_regex", "prepend"])
def test_a_long_text_takes_little_memory(name: str, tmp_path: Path) -> None:
    """By the kernel's count: the library takes more than 50 MB at once for this."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(LIBRARIES[name].to_str())))
    text = "The quick brown fox, isn't it? 12 (ab) " * 13_000
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], input=text, capture_output=True, text=True,
                          check=True)
    assert int(done.stdout) < 16 << 20
