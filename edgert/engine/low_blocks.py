"""Low blocks: PAGE positions of all layers at 3 bits an element (kernels/low_pages.py), which a session keeps instead
of forgetting them."""

import numpy as np

from edgert.kernels.low_pages import low_layout, low_page_bytes
from edgert.models.config import Config
from edgert.residency.region import Region

LOW = 1 << 40
"""Numbers of low blocks begin here."""


class LowBlocks:
    """Room for `count` low blocks, numbered from LOW on."""

    def __init__(self, layers: int, config: Config, count: int) -> None:
        self.layers, self.count = layers, count
        self.page_bytes = low_page_bytes(config.num_key_value_heads, config.head_dim)
        self.block_bytes = low_block_bytes(config)
        self.region = Region(count * self.block_bytes, f"{count} low blocks of the cache")
        self._head = low_layout(config.head_dim)
        self._free = list(reversed(range(LOW, LOW + count)))

    def take(self) -> int:
        """One that nobody has. There must be one."""
        return self._free.pop()

    def give_back(self, block: int) -> None:
        """Have it no more."""
        self._free.append(block)

    def pages(self, block: int) -> np.ndarray:
        """Addresses of its pages, one for each layer: int64."""
        return self.region.address + (block - LOW) * self.block_bytes + self.page_bytes * np.arange(self.layers)

    def view(self, block: int) -> memoryview:
        """Its bytes."""
        return self.region.view((block - LOW) * self.block_bytes, self.block_bytes)

    def heads(self, block: int) -> np.ndarray:
        """What it contains: (layers, key-value heads) of kernels.low_pages.low_layout."""
        return np.frombuffer(self.view(block), self._head).reshape(self.layers, -1)


def low_block_bytes(config: Config) -> int:
    """Bytes of a low block."""
    return config.num_hidden_layers * low_page_bytes(config.num_key_value_heads, config.head_dim)
