"""The model families that edgert knows, by name."""

from typing import Any, Protocol

from . import (
    bitnet,
    config,
    deepseek,
    gemma2,
    gemma3,
    gptneox,
    gptoss,
    granite,
    granitemoe,
    llama,
    mistral,
    mistral3,
    mixtral,
    olmo2,
    olmoe,
    opt,
    phi2,
    phi3,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    smollm3,
    stablelm,
)
from .network import Network


class Family(Protocol):
    """What a family's module has."""

    @property
    def Config(self) -> type[config.Config]:
        """Its hyper-parameters, and which tensors follow from them."""

    def wire(self, config: Any, net: Network, /) -> None:
        """The whole model of a config, top to bottom, as operations on a network."""


FAMILIES: dict[str, Family] = {
    "llama": llama, "qwen2": qwen2, "opt": opt, "qwen3": qwen3, "mistral": mistral, "mistral3": mistral3, "phi3": phi3,
    "granite": granite, "smollm3": smollm3, "olmo2": olmo2, "stablelm": stablelm, "phi2": phi2, "gptneox": gptneox,
    "gemma2": gemma2, "gemma3": gemma3, "mixtral": mixtral, "olmoe": olmoe, "qwen3moe": qwen3moe,
    "qwen2moe": qwen2moe, "granitemoe": granitemoe, "deepseek": deepseek, "gpt-oss": gptoss,
    "bitnet": bitnet}

MODEL_TYPES: dict[str, Family] = {
    **FAMILIES, "ministral": mistral, "ministral3": mistral3, "phi": phi2, "gpt_neox": gptneox, "gemma3_text": gemma3,
    "qwen3_moe": qwen3moe, "qwen2_moe": qwen2moe, "granitemoeshared": granitemoe, "gpt_oss": gptoss}
"""By the name in config.json, which may be another."""
