"""The model families that edgert knows, by the name in GGUF's `general.architecture` and config.json's `model_type`."""

from types import ModuleType

from . import llama, qwen2

FAMILIES: dict[str, ModuleType] = {"llama": llama, "qwen2": qwen2}
