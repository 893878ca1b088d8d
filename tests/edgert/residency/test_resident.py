"""The resident section: what stays of it is where it is said to be, and of the rest every slab has its checksum."""

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_bundle

from edgert.bundle import Bundle
from edgert.bundle.header import RESIDENT, UnitLayout
from edgert.errors import BundleError
from edgert.residency import resident
from edgert.residency.file import FlashFile
from edgert.residency.region import Allocator, Region
from edgert.residency.resident import Resident


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("resident") / "m.edge"
    with Bundle(write_bundle(path, "q4", num_hidden_layers=2, hidden_size=160, num_attention_heads=10,
                             num_key_value_heads=5)) as opened:
        yield opened


@pytest.fixture(params=[4096, 1 << 20], autouse=True, scope="module")
def _pieces_smaller_and_larger_than_a_slab(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "_PIECE", request.param)
        yield


def nothing() -> None:
    pass


def attention(bundle: Bundle) -> list[UnitLayout]:
    return [layout for layout in bundle.header.streamable() if layout.section == RESIDENT]


@given(st.data())
def test_every_byte_is_kept_or_has_a_checksum(bundle: Bundle, data: st.DataObject) -> None:
    layouts = attention(bundle)
    firsts = {layout: data.draw(st.integers(0, layout.count)) for layout in layouts}
    streamed = {layout: first for layout, first in firsts.items() if first < layout.count}
    section, content = bundle.header.sections[RESIDENT], bundle.read_section(RESIDENT)
    allocator = Allocator()
    made = Resident(section, streamed, allocator)
    region = Region(allocator.size, "a test's")
    assert allocator.size <= section.length - sum(
        layout.bytes_of(first) for layout, first in streamed.items()) + 128 * len(layouts), "as the plan counts it"
    with FlashFile(bundle.path) as file:
        checksums = made.load(file, region, nothing)
    for name, tensor in bundle.header.tensors.items():
        if tensor.section != RESIDENT:
            continue
        layout = next((layout for layout in streamed if layout.name == name), None)
        length = tensor.length if layout is None else min(streamed[layout] * layout.unit_bytes, tensor.length)
        if length:
            place = made.place(tensor.offset)
            assert place % 64 == 0
            assert region.view(place, length) == content[tensor.offset:tensor.offset + length]
        if layout is not None:
            rest = content[tensor.offset + length:tensor.offset + tensor.length]
            assert checksums.pop(name) == [xxhash.xxh3_64_intdigest(rest[at:at + layout.unit_bytes])
                                           for at in range(0, len(rest), layout.unit_bytes)]
    assert not checksums
    region.close()


class FlippingFile(FlashFile):
    """A file whose first `flips` reads come with a wrong bit."""

    flips = 1

    def read(self, offset: int, buffer: memoryview, needed: int) -> None:
        super().read(offset, buffer, needed)
        if self.flips:
            self.flips -= 1
            buffer[needed // 2] ^= 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_read_again_is_all_new(bundle: Bundle, share: float) -> None:
    """Also the checksums of slabs: none is made from bytes that the section's checksum did not cover."""
    streamed = {layout: int(share * layout.count) for layout in attention(bundle)}
    section = bundle.header.sections[RESIDENT]
    found = []
    for kind in (FlashFile, FlippingFile):
        made = Resident(section, streamed, allocator := Allocator())
        region = Region(allocator.size, "a test's")
        with kind(bundle.path) as file:
            checksums = made.load(file, region, nothing)
            assert file.read_again == (kind is FlippingFile)
        found.append((checksums, np.frombuffer(region.view(), np.uint8).tobytes()))
    assert found[0] == found[1]
    with FlippingFile(bundle.path) as file, pytest.raises(BundleError, match="section 'resident' at offset"):
        file.flips = 1 << 30
        made.load(file, region, nothing)
