"""The model families that edgert knows, by the name that GGUF's `general.architecture` and config.json's `model_type` use."""

from types import ModuleType

from . import llama, qwen2

FAMILIES: dict[str, ModuleType] = {"llama": llama, "qwen2": qwen2}
