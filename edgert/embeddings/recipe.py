"""How a model makes a vector of a text: read from its folder, as sentence-transformers writes it.

    modules.json                       Transformer, Pooling, and perhaps Normalize
    sentence_bert_config.json          max_seq_length, do_lower_case
    1_Pooling/config.json              which pooling
    config_sentence_transformers.json  prompts that go before texts
    onnx/model.onnx or model.onnx, tokenizer.json

Only the last two must be there. Without modules.json: the mean of all tokens, normalized.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgert.errors import EmbeddingError

MOST_TOKENS = 1024
"""Of a text, at most: what attention takes grows with the square."""
_USUAL_TOKENS = 512
_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
             "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len", "pooling_mode_weightedmean_tokens": "weightedmean",
             "pooling_mode_lasttoken": "lasttoken"}
"""In the order in which sentence-transformers puts their vectors together."""
_OFFSET_POSITIONS = ("roberta", "camembert", "xlm-roberta", "mpnet", "xlm-roberta-xl")
"""Kinds of model whose positions begin behind that of padding."""
_ONNX = ("onnx/model.onnx", "model.onnx")


@dataclass(frozen=True)
class Recipe:
    """name: of the model, for people and clients. max_tokens: of a text; what follows them is left out. pooling: names
    of `_POOLINGS`; their vectors are put one behind the other. prompts: texts that go before texts, by name;
    default_prompt: the one that does where nothing else is said."""

    name: str
    onnx: Path
    tokenizer: Path
    max_tokens: int
    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = True
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    def before(self, prompt: str | None) -> str:
        """The text that goes before each text. prompt: its name; None for the model's default. Raises
        EmbeddingError."""
        name = self.default_prompt if prompt is None else prompt
        if name is not None and name not in self.prompts:
            known = f"it has {', '.join(map(repr, self.prompts))}" if self.prompts else "it has none"
            raise EmbeddingError(f"{self.name}: has no prompt {name!r}; {known}")
        return "" if name is None else self.prompts[name]


def read_recipe(model: Path) -> Recipe:
    """The recipe of a folder, or of an ONNX file in one. Raises EmbeddingError."""
    if model.is_file():
        folder = model.parent.parent if model.parent.name == "onnx" else model.parent
        onnx = model
    elif model.is_dir():
        folder, onnx = model, _onnx(model)
    else:
        raise EmbeddingError(f"{model}: there is no such folder; give one with an ONNX model and tokenizer.json, or "
                             "the name of a model that edgert pull has fetched")
    modules = {kind.rpartition(".")[2]: path for kind, path in _modules(folder)}
    if unknown := [kind for kind in modules if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise EmbeddingError(f"{folder / 'modules.json'}: has a module {unknown[0]}, which is not supported")
    transformer = folder / modules.get("Transformer", "")
    tokenizer = next((path for place in (folder, transformer, onnx.parent)
                      if (path := place / "tokenizer.json").is_file()), None)
    if tokenizer is None:
        raise EmbeddingError(f"{folder}: has no tokenizer.json; save the tokenizer with transformers' fast tokenizers")
    bert = _values(transformer / "sentence_bert_config.json")
    prompting = _values(folder / "config_sentence_transformers.json")
    prompts = {str(name): str(text) for name, text in (prompting.get("prompts") or {}).items()}
    default = prompting.get("default_prompt_name")
    pooling, with_prompt = _pooling(folder / modules.get("Pooling", "1_Pooling") / "config.json")
    if any(prompts.values()) and not with_prompt:
        raise EmbeddingError(f"{folder}: leaves prompts out when it pools (include_prompt), which is not supported")
    return Recipe(folder.resolve().name, onnx, tokenizer, _max_tokens(folder, bert, tokenizer), pooling,
                  normalize=not modules or "Normalize" in modules, lower_case=bert.get("do_lower_case") is True,
                  prompts=prompts, default_prompt=default if default in prompts else None)


def _onnx(folder: Path) -> Path:
    for name in _ONNX:
        if (folder / name).is_file():
            return folder / name
    found = sorted({*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")})
    if not found:
        raise EmbeddingError(f"{folder}: has no ONNX model; sentence-transformers' export_optimized_onnx_model or "
                             "optimum-cli export onnx make one")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise EmbeddingError(f"{folder}: has several ONNX models ({names}); give the path of one")
    return found[0]


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Type and path of each module. Raises EmbeddingError."""
    path = folder / "modules.json"
    modules = _json(path, [])
    try:
        return [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, KeyError, AttributeError):
        raise EmbeddingError(f"{path}: is not a list of modules with type and path") from None


def _pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """Which pooling, and whether prompts take part in it. Raises EmbeddingError."""
    values = _values(path)
    if isinstance(mode := values.get("pooling_mode"), str):  # as sentence-transformers 5 writes it
        chosen = tuple(mode.split("+"))
    else:
        chosen = tuple(name for key, name in _POOLINGS.items() if values.get(key) is True) or ("mean",)
    if unknown := set(chosen) - set(_POOLINGS.values()):
        raise EmbeddingError(f"{path}: the pooling {sorted(unknown)[0]!r} is not supported")
    return chosen, values.get("include_prompt") is not False


def _max_tokens(folder: Path, bert: Mapping[str, Any], tokenizer: Path) -> int:
    """Where the folder does not say max_seq_length: what its tokenizer and its positions allow."""
    config = _values(folder / "config.json")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _OFFSET_POSITIONS:
        positions -= 2
    named = bert.get("max_seq_length") or _values(folder / "tokenizer_config.json").get("model_max_length")
    if not named:
        named = (_values(tokenizer).get("truncation") or {}).get("max_length") or positions or _USUAL_TOKENS
    limits = [limit for limit in (named, positions, MOST_TOKENS) if isinstance(limit, int | float)]
    return max(int(min(limits)), 8)


def _values(path: Path) -> Mapping[str, Any]:
    values = _json(path, {})
    if not isinstance(values, dict):
        raise EmbeddingError(f"{path}: is not a JSON object")
    return values


def _json(path: Path, otherwise: Any) -> Any:
    """What a JSON file has; `otherwise` where there is none. Raises EmbeddingError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError, RecursionError) as error:
        raise EmbeddingError(f"{path}: cannot be read: {error}") from None
