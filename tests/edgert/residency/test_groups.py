"""Neuron groups that stay: whole ones put together of their planes, and bases; damage to either plane is found."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import make_engine
from tiny_model import whole_groups, write_bundle

from edgert.bundle import Bundle, Neurons
from edgert.bundle.header import HEAD
from edgert.engine.session import Session
from edgert.errors import BundleError
from edgert.kernels import native
from edgert.residency import groups
from edgert.residency.file import ALIGNMENT, FlashFile
from edgert.residency.groups import PinnedGroups
from edgert.residency.region import Allocator, Region

SHAPE = {"num_hidden_layers": 2, "intermediate_size": 700, "vocab_size": 300, "hidden_size": 96}


@pytest.fixture(scope="module", params=["q4", "q8", "f32"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("groups") / "m.edge"
    with Bundle(write_bundle(path, request.param, size=0.2, **SHAPE)) as opened:
        yield opened


@pytest.fixture(params=[4096, 1 << 20], autouse=True, scope="module")
def _pieces_of_one_group_and_of_all(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_PIECE", request.param)
        yield


def loaded(bundle: Bundle, n: Neurons, bases: int, details: int, whole_bytes: int) -> list[bytes]:
    """What stands where the groups are said to be: `details` whole groups, of so many bytes, then bases."""
    detail_units = bundle.units[n.details] if n.details else None
    before, progress = Allocator(), []
    before.reserve(77)
    made = PinnedGroups(n, bundle.header.config, bundle.units[n.section], detail_units, bases, details, before)
    region = Region(before.size, "a test's")
    assert before.size <= details * (n.group_bytes + n.detail_bytes) + (bases - details) * n.group_bytes + (
        3 * ALIGNMENT + 128)
    with FlashFile(bundle.path) as file:
        made.load(file, region, native.library(), lambda: progress.append(1))
    assert bool(progress) == bool(bases)
    addresses = made.addresses(region)
    assert addresses.dtype == np.int64 and len(addresses) == bases
    sizes = [whole_bytes] * details + [n.group_bytes] * (bases - details)
    found = [bytes(region.view(int(at) - region.address, size)) for at, size in zip(addresses, sizes, strict=True)]
    region.close()
    return found


@settings(max_examples=25)
@given(st.data())
def test_each_group_is_what_the_file_has(bundle: Bundle, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, 1))
    n = bundle.header.neurons[layer]
    bases = data.draw(st.integers(0, n.groups))
    details = data.draw(st.integers(0, bases)) if n.details else 0
    base = np.frombuffer(bundle.read_section(n.section), np.uint8).reshape(n.groups, n.group_bytes)
    whole = whole_groups(bundle, layer)
    expected = [whole[i].tobytes() if i < details else base[i].tobytes() for i in range(bases)]
    assert loaded(bundle, n, bases, details, whole.shape[1]) == expected


def planes(bundle: Bundle) -> list[tuple[str, int, int]]:
    """Of each plane of the last layer: its section, where that is, and the bytes of a group in it."""
    return [(name, bundle.header.sections[name].offset, size) for name, size in bundle.header.neurons[-1].parts()]


def flipped(bundle: Bundle, path: Path, offset: int) -> Path:
    content = bytearray(bundle.path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("group", [0, 6, 13, 21])
def test_a_bit_flipped_in_either_plane_is_found(bundle: Bundle, tmp_path: Path, group: int) -> None:
    """Wherever it is: in groups that are whole in memory, of which the base stays, or nothing."""
    for name, offset, size in planes(bundle):
        for place in (0, size - 1):
            path = flipped(bundle, tmp_path / "m.edge", offset + group * size + place)
            for details, keep in ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0)):
                with Bundle(path) as damaged, pytest.raises(
                        BundleError, match=f"part {group} of '{name}' at offset {offset + group * size} does not"):
                    engine = make_engine(damaged, keep=keep, details=details)
                    try:
                        engine.forward(Session(damaged.header.config, 8, "f32"), [1, 2])
                    finally:
                        engine.close()


def test_nothing_is_read_twice_and_all_that_is_pinned_once(bundle: Bundle) -> None:
    class Counting(FlashFile):
        read_bytes = 0

        def read(self, offset: int, buffer: memoryview, needed: int) -> None:
            Counting.read_bytes += needed
            super().read(offset, buffer, needed)

    engine = make_engine(bundle, file=Counting(bundle.path))
    total = bundle.header.sections["resident"].length + bundle.header.sections[HEAD].length + sum(
        n.groups * (n.group_bytes + n.detail_bytes) for n in bundle.header.neurons)
    # Pieces begin and end within pages.
    assert total <= Counting.read_bytes <= total + 2 * ALIGNMENT * 4 * sum(n.groups for n in bundle.header.neurons)
    engine.close()
