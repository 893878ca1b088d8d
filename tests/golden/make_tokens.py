"""Makes tests/golden/tokens-*.json and the small GGUFs beside them, with llama.cpp.

    python tests/golden/make_tokens.py [FOLDER OF THE REFERENCE GGUFS]

Needs `pip install edgert[peer]`. The folder is $EDGERT_TEST_MODELS or ~/.cache/edgert-test-models by default.
"""

import hashlib
import json
import os
import sys
import tempfile
from array import array
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from texts import TEXTS, long_text
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgert.converters.gguf_splits import SPLITS

HERE = Path(__file__).parent
MODELS = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen": "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    "gemma": "gemma-3-270m-q4_k_m.gguf",
}
SHORTER = 100_000
"""Characters of a long text that tests always go through; they go through a million where all is tested."""
WORDS = [
    "the", "and", "of", "to", "in", "is", "that", "for", "it", "was", "on", "with", "as", "be", "at", "by", "this",
    "are", "from", "or", "have", "an", "not", "they", "which", "one", "you", "were", "her", "all", "their", "there",
    "been", "many", "some", "so", "these", "would", "other", "into", "has", "more", "two", "about", "could", "time",
    "than", "first", "only", "new", "very", "when", "can", "your", "work", "well", "also", "such", "between",
    "world", "hello", "test", "text", "token", "model", "code", "data", "name",
]


def digest(ids: list[int]) -> dict[str, Any]:
    """Count and SHA-256 of the ids as little-endian 32-bit integers."""
    values = array("I", ids)
    if sys.byteorder == "big":
        values.byteswap()
    return {"count": len(ids), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}


def golden(path: Path) -> dict[str, Any]:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def tokenize(text: str, special: bool) -> list[int]:
        return model.tokenize(text.encode(), add_bos=False, special=special) if text else []

    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    return {
        "llama_cpp_python": llama_cpp.__version__,
        "special": {name: tokenize(text, True) for name, text in TEXTS.items()},
        "plain": {name: tokenize(text, False) for name, text in TEXTS.items()},
        **{name: {kind: digest(tokenize(text, kind == "special")) for kind in ("special", "plain")}
           for name, text in (("long", long_text()), ("shorter", long_text(SHORTER)))},
        "eog": [i for i in range(size) if llama_cpp.llama_vocab_is_eog(vocabulary, i)],
        "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocabulary)),
        "bos": llama_cpp.llama_vocab_bos(vocabulary),
        "eos": llama_cpp.llama_vocab_eos(vocabulary),
    }


def small_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece-style vocabulary as Llama 2 has it: specials, bytes, merged pieces best first, characters."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    others = "▁ABCDEHTW0123456789.,:;!?'\"()[]{}<>=+-*/_#\téüßñ你好世界مرحباשлвеПрит"
    characters = sorted(set("".join(WORDS)) | set(others))
    pieces: dict[str, None] = dict.fromkeys(["▁▁", "▁▁▁▁", "▁▁▁", "aa", "aaa", "aaaa", "aba", "abab", "ab", "ba"])
    for word in WORDS:  # every piece is the join of two others, as in training
        for end in range(2, len(word) + 1):
            pieces.setdefault(word[:end])
            pieces.setdefault("▁" + word[:end - 1])
        pieces.setdefault("▁" + word)
    pieces.update(dict.fromkeys(["你好", "世界", "Пр", "ив", "Прив", "ет", "Привет"]))
    merged = [piece for piece in pieces if len(piece) > 1]
    tokens += merged + characters + ["[INST]", "[/INST]"]
    types += [gguf.TokenType.NORMAL] * (len(merged) + len(characters)) + [gguf.TokenType.USER_DEFINED] * 2
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(merged) + len(characters))] + [-10000.0] * 2
    return tokens, scores, [int(kind) for kind in types]


def small_merges() -> tuple[list[str], list[str]]:
    """Tokens and merges of bytes, trained on whole texts: they join what pre-tokenizers part."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False, max_token_length=12)
    library.train_from_iterator([text.replace("</s>", "") for text in (*TEXTS.values(), long_text(60_000))], trainer)
    model = json.loads(library.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(merge) for merge in model["merges"]]


def write_merges(path: Path, tokens: list[str], merges: list[str], pre: str) -> None:
    """A GGUF of tokens of bytes with this pre-tokenizer, and nothing else."""
    writer = begun(path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * len(tokens))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    written(writer)


def words(path: Path) -> dict[str, Any]:
    """The digest of the ids of all texts one after the other, and of a long one."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return digest([index for text in (*TEXTS.values(), long_text(50_000)) if text
                   for index in model.tokenize(text.encode(), add_bos=False, special=True)])


def begun(path: Path) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def written(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(path: Path, space_prefix: bool) -> None:
    """A GGUF of `small_vocabulary` and nothing else."""
    tokens, scores, types = small_vocabulary()
    writer = begun(path)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(space_prefix)
    written(writer)


def main() -> None:
    default = os.environ.get("EDGERT_TEST_MODELS", Path.home() / ".cache" / "edgert-test-models")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else default)
    paths = {name: folder / file for name, file in MODELS.items()}
    for name, prefix in (("spm", True), ("spm-no-prefix", False)):
        paths[name] = HERE / f"{name}.gguf"
        write_vocabulary(paths[name], prefix)
    for name, path in paths.items():
        target = HERE / f"tokens-{name}.json"
        text = json.dumps(golden(path), indent=None, separators=(",", ":"))
        target.write_text(text.replace('],"', '],\n"').replace('},"', '},\n"') + "\n")
        print(target.name, target.stat().st_size)
    tokens, merges = small_merges()
    write_merges(HERE / "bpe.gguf", tokens, merges, "default")
    found = {}
    for pre in sorted(SPLITS):
        with tempfile.TemporaryDirectory() as folder:
            write_merges(Path(folder) / "bpe.gguf", tokens, merges, pre)
            found[pre] = words(Path(folder) / "bpe.gguf")
    lines = ",\n".join(f"{json.dumps(pre)}: {json.dumps(value)}" for pre, value in found.items())
    (HERE / "tokens-words.json").write_text(f"{{{lines}}}\n")


if __name__ == "__main__":
    main()
