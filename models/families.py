"""The model families that edgert knows, by the name in GGUF's `general.architecture` and config.json's `model_type`."""

from typing import Any, Protocol

from . import config, llama, mixtral, olmoe, opt, qwen2, qwen3_moe
from .network import Network


class Family(Protocol):
    """What a family's module has."""

    @property
    def Config(self) -> type[config.Config]:
        """Its hyper-parameters, and which tensors follow from them."""

    def wire(self, config: Any, net: Network, /) -> None:
        """The whole model of a config, top to bottom, as operations on a network."""


FAMILIES: dict[str, Family] = {"llama": llama, "qwen2": qwen2, "opt": opt, "mixtral": mixtral, "olmoe": olmoe,
                               "qwen3_moe": qwen3_moe}
