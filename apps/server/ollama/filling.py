"""What stands between two texts: the prompt for models that were made to fill in."""

from edgert import LanguageModel

from ..errors import ApiError

_MARKS = (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
"""Special tokens before the first text, the second one, and what is asked for: Qwen's, and those of StarCoder and its
kin (Bavarian et al. 2022, "Efficient training of language models to fill in the middle")."""


def prompt_between(model: LanguageModel, before: str, after: str) -> list[int]:
    """The token ids after which a model writes what stands between two texts. Names of special tokens in them are plain
    text. Raises ApiError for a model without such marks, and EdgertError."""
    for names in _MARKS:
        ids = model.tokenizer.ids_of(names)
        if len(ids) == len(names):
            first, second, middle = (ids[name] for name in names)
            texts = [model.tokenizer.encode(text, special=False, add_bos=False) for text in (before, after)]
            return [first, *texts[0], second, *texts[1], middle]
    raise ApiError(400, "suffix is not supported: this model has no marks for what stands between two texts")
