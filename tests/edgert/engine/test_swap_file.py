"""Blocks on flash: what is read is what was written, whichever way the file system takes it."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgert.engine.swap_file import SwapFile
from edgert.errors import ModelError
from edgert.residency.region import Region

LAYERS, SLOTS = 6, 9


def blocks_of(region: Region, page_bytes: int, count: int, shift: int) -> list[np.ndarray]:
    """Blocks beside one another in memory, as a pool has them; with a shift, where no direct read can bring them."""
    flat = np.frombuffer(region.view(shift, count * LAYERS * page_bytes), np.uint8)
    return list(flat.reshape(count, LAYERS, page_bytes))


def short(real: object, most: int) -> object:
    def some(handle: int, buffers: list[memoryview], offset: int) -> int:
        return real(handle, [buffers[0][:most]], offset)  # type: ignore[operator,no-any-return]
    return some


def refused(*_: object) -> int:
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("calls", ["as they are", "short", "refused"])
@pytest.mark.parametrize(("page_bytes", "shift"), [(8192, 0), (8192, 64), (5000, 0)])
def test_blocks_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: str, page_bytes: int,
                          shift: int) -> None:
    rng = np.random.default_rng(page_bytes + shift)
    region = Region(2 * SLOTS * LAYERS * page_bytes + 4096, "blocks")
    blocks = blocks_of(region, page_bytes, 2 * SLOTS, shift)
    for block in blocks:
        block[:] = rng.integers(0, 256, block.shape)
    if calls == "short":
        monkeypatch.setattr(os, "pwritev", short(os.pwritev, 4096))
        monkeypatch.setattr(os, "preadv", short(os.preadv, 4096))
    elif calls == "refused":
        monkeypatch.setattr(os, "pwritev", refused)
    swap = SwapFile(tmp_path, LAYERS, page_bytes, SLOTS)
    there: dict[int, np.ndarray] = {}
    for _ in range(12):  # slots are used again in any order, so that runs have all lengths
        for slot in rng.permutation(sorted(there))[:rng.integers(0, len(there) + 1)].tolist():
            swap.free(slot)
            del there[slot]
        some = rng.permutation(SLOTS)[:rng.integers(1, swap.room + 1)] if swap.room else []
        there |= dict(zip(swap.put([blocks[n] for n in some]), [blocks[n].copy() for n in some], strict=True))
        slots = rng.permutation(sorted(there)).tolist()
        if rng.random() < 0.5:
            slots.sort()
        into = blocks[SLOTS:SLOTS + len(slots)]
        swap.take_back(slots, into)
        for slot, block in zip(slots, into, strict=True):
            np.testing.assert_array_equal(block, there[slot])
    with pytest.raises(ModelError, match="all are in use"):
        swap.put(blocks[:swap.room + 1])
    swap.close()
    del blocks, into, some
    region.close()


def test_there_is_no_file_before_it_is_needed(tmp_path: Path) -> None:
    swap = SwapFile(tmp_path / "swap", 1, 4096, 2)
    assert not (tmp_path / "swap").exists()
    swap.put([np.zeros((1, 4096), np.uint8)])
    assert (tmp_path / "swap").is_dir()
    swap.close()
    SwapFile(tmp_path / "other", 1, 4096, 2).close()
    (tmp_path / "file").touch()
    nowhere = SwapFile(tmp_path / "file", 1, 4096, 2)
    with pytest.raises(ModelError, match="the part of the key-value cache that has no room in memory cannot be put"):
        nowhere.put([np.zeros((1, 4096), np.uint8)])
    assert nowhere.room == 2
    nowhere.close()
