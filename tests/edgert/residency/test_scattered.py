"""Many small reads in one call."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import BundleError
from edgert.kernels import native
from edgert.residency.file import FlashFile
from edgert.residency.region import Region
from edgert.residency.scattered import MOST, ScatteredReader

PAGES, SLOTS = 40, 24


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scattered") / "file"
    made.write_bytes(np.random.default_rng(0).bytes(4096 * PAGES))
    return made


@settings(max_examples=40)
@given(data=st.data(), pages=st.sampled_from([1, 2]), direct=st.booleans())
def test_each_piece_where_it_belongs(path: Path, data: st.DataObject, pages: int, direct: bool) -> None:
    """Also where the file system does not read directly, and nothing beside them is touched."""
    size, region = 4096 * pages, Region(4096 * 2 * SLOTS, "a test")
    numbers = sorted(data.draw(st.sets(st.integers(0, PAGES // pages - 1), min_size=1, max_size=MOST)))
    places = [size * slot for slot in data.draw(st.permutations(range(SLOTS)))[:len(numbers)]]
    memory, expected, whole = region.view(), np.zeros(region.size, np.uint8), path.read_bytes()
    memory[:] = bytes(region.size)
    for number, place in zip(numbers, places, strict=True):
        expected[place:place + size] = np.frombuffer(whole[size * number:size * (number + 1)], np.uint8)
    reader = ScatteredReader(native.library())
    with FlashFile(path) as file:
        file.direct &= direct
        file.read_scattered(reader, [size * number for number in numbers], size, memory, region.address, places)
    assert np.array_equal(np.frombuffer(memory, np.uint8), expected)
    reader.close()
    del memory
    region.close()


def test_what_cannot_be_read_is_said(path: Path) -> None:
    """Behind the end of the file; those before it are there."""
    region, reader = Region(4096 * 4, "a test"), ScatteredReader(native.library())
    with FlashFile(path) as file:
        assert reader.read(file._file.fileno(), [0, 4096 * (PAGES - 1), 4096 * PAGES, 4096 * (PAGES + 5)],
                           [region.address + 4096 * place for place in (3, 1, 0, 2)], 4096) == [1, 2, 3]
        with pytest.raises(BundleError, match=f"ends at offset {4096 * PAGES}, before what its header promises"):
            file.read_scattered(reader, [0, 4096 * PAGES], 4096, region.view(), region.address, [0, 4096])
    assert bytes(region.view(4096 * 3, 4096)) == path.read_bytes()[:4096]
    assert reader.read(-1, [0], [region.address], 4096) == [0]
    reader.close()
    region.close()
