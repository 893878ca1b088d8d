"""Makes unigram.json, the tokenizer of tests/edgert/text/test_unigram.py: python tests/golden/make_unigram.py

Pieces learned from prose, code and conversation in several languages. Learning them goes through hash maps, whose order
is another one in each process, so the pieces are too: hence the file.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

GOLDEN = Path(__file__).parent


def main() -> None:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    text = (GOLDEN.parents[1] / "converters" / "calibration.txt").read_text()
    made.train_from_iterator(text.splitlines(), trainers.UnigramTrainer(
        vocab_size=1000, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))
    (GOLDEN / "unigram.json").write_text(made.to_str() + "\n")


if __name__ == "__main__":
    main()
