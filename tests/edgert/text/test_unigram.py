"""SentencePiece's unigram model (Kudo 2018), from a tokenizer.json: its ids are llama.cpp's with the same pieces.

llama.cpp calls it `t5`; of the families that edgert knows, none has it in GGUF files.
"""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer as Library

from edgert.errors import ModelError
from edgert.text.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="edgert[llama] is not installed")
TESTS = Path(__file__).parents[2]
_spec = spec_from_file_location("golden_texts", TESTS / "golden" / "texts.py")
assert _spec and _spec.loader
texts = module_from_spec(_spec)
_spec.loader.exec_module(texts)


@pytest.fixture(scope="module")
def library() -> Library:
    """Pieces learned from prose, code and conversation (make_unigram.py); the texts below had no part in it."""
    return Library.from_file(str(TESTS / "golden" / "unigram.json"))


def write_pieces(path: Path, pieces: list[tuple[str, float]]) -> None:
    """A GGUF of these pieces, of which the first two are <unk> and </s>, and nothing else."""
    writer = GGUFWriter(path, "t5")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_relative_attn_buckets_count(32)
    writer.add_tokenizer_model("t5")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    writer.add_token_types([TokenType.UNKNOWN, TokenType.CONTROL] + [TokenType.NORMAL] * (len(pieces) - 2))
    writer.add_unk_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_ids_are_llama_cpps(library: Library, tmp_path: Path) -> None:
    """Of texts that begin with no space: llama.cpp puts another one before it, the tokenizers library does not."""
    write_pieces(tmp_path / "m.gguf", json.loads(library.to_str())["model"]["vocab"])
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    tokenizer = Tokenizer.from_json(library.to_str())
    for text in [*texts.TEXTS.values(), "x" + texts.long_text(20_000)]:
        if text.strip():
            text = text.replace("</s>", "</b>").replace("<unk>", "<u>")  # they are pieces, which plain text is not
            ids = peer.tokenize(text.encode(), add_bos=False, special=False)
            assert tokenizer.encode(text, special=False) == ids
            if "<unk>" not in tokenizer.decode(ids):
                assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_plain_text_becomes_no_special_piece(library: Library) -> None:
    with pytest.raises(ModelError, match="turns into a special token"):
        Tokenizer.from_json(library.to_str()).encode("a </s>", special=False)
