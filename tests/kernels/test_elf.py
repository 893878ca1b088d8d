import contextlib
import ctypes
import struct

import numpy as np
import pytest
import rig
from hypothesis import given
from hypothesis import strategies as st
from weights_for import FORMAT_NAMES, matrix, values

from edgert.kernels import native
from edgert.kernels.elf import Image, Unsupported
from edgert.kernels.formats import FORMATS
from edgert.kernels.team import Team


@pytest.fixture(scope="module")
def code(target: str) -> bytes:
    return native.object_file(target)


def test_kernels_need_no_llvm_to_load(target: str, code: bytes) -> None:
    """Every relocation of the compiled kernels is known."""
    if not code.startswith(b"\x7fELF"):
        pytest.skip("another object format")
    assert isinstance(native.library(target)._holder, Image)
    image = Image(code)
    assert image.base <= image.symbol("edgert_run") < image.base + len(image.memory)
    with pytest.raises(KeyError):
        image.symbol("another")


def test_loading_through_llvm_gives_the_same_bits(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_data: bytes) -> Image:
        raise Unsupported("for this test")

    monkeypatch.setattr(native, "Image", refuse)
    library = native.Library(native.object_file(target))
    assert not isinstance(library._holder, Image)
    team = Team(library, 2)
    try:
        for name in FORMAT_NAMES:
            rng = np.random.default_rng(3)
            weights = matrix(rng, FORMATS[name], "ordinary", 50, 100)
            x = values(rng, "ordinary", (5, 100))
            results = [rig.linear(t, weights.form, weights.packed, rig.activations(t, weights.form, x))
                       for t in (team, rig.team(target))]
            assert np.array_equal(results[0].view(np.int32), results[1].view(np.int32))
    finally:
        team.close()


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" + bytes(100), bytes(1000), b"\x7fELF\x02\x01" + bytes(100),
                                  b"\x7fELF\x01\x01" + bytes(100), b"\xcf\xfa\xed\xfe" + bytes(200)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(Unsupported):
        Image(data)


SECTION, HEADER = struct.Struct("<IIQQQQIIQQ"), 64


def tiny(machine: int = 62, *, kind: int = 1, relocation: int = 2, symbol: bytes = b"", offset: int = 0,
         value: int = 0, section: int = 1) -> bytes:
    """An object file of one section of code, `edgert_run` in it, one relocation and maybe an external symbol."""
    names = b"\0edgert_run\0" + symbol + b"\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, section, value, 0)
    if symbol:
        symbols += struct.pack("<IBBHQQ", 12, 0x10, 0, 0, 0, 0)
    relocations = struct.pack("<QQq", offset, (2 if symbol else 1) << 32 | relocation, 0)
    parts = [b"\xc3" * 64, symbols, names, relocations]
    starts = [HEADER + sum(map(len, parts[:i])) for i in range(5)]
    sections = [SECTION.pack(*[0] * 10), SECTION.pack(0, 1, 6, 0, starts[0], 64, 0, 0, 16, 0),
                SECTION.pack(0, 2, 0, 0, starts[1], len(symbols), 3, 1, 8, 24),
                SECTION.pack(0, 3, 0, 0, starts[2], len(names), 0, 0, 1, 0),
                SECTION.pack(0, 4, 0, 0, starts[3], len(relocations), 2, 1, 8, 24)]
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, 0, starts[4], 0, HEADER, 0, 0, SECTION.size, len(sections), 0)
    return head + b"".join(parts) + b"".join(sections)


def test_x86_relocations() -> None:
    image = Image(tiny(relocation=1, offset=8))  # R_X86_64_64
    assert struct.unpack_from("<Q", image.memory, 8)[0] == image.symbol("edgert_run") == image.base
    image = Image(tiny(relocation=2, offset=8, value=32))  # R_X86_64_PC32
    assert struct.unpack_from("<i", image.memory, 8)[0] == 32 - 8
    image = Image(tiny(relocation=4, symbol=b"memcpy"))  # R_X86_64_PLT32, through a stub after the code
    place, = struct.unpack_from("<i", image.memory, 0)
    address, = struct.unpack_from("<Q", image.memory, place + 6)
    assert place == 64 and address == ctypes.cast(ctypes.CDLL(None).memcpy, ctypes.c_void_p).value


@pytest.mark.parametrize(("relocation", "value", "before", "after"), [
    (260, 40, 0, 40),  # PREL64
    (277, 0x28, 0x91000000, 0x91000000 | 0x28 << 10),  # ADD_ABS_LO12_NC
    (286, 0x28, 0xF9400000, 0xF9400000 | 0x28 >> 3 << 10),  # LDST64_ABS_LO12_NC
    (299, 0x30, 0x3DC00000, 0x3DC00000 | 0x30 >> 4 << 10),  # LDST128_ABS_LO12_NC
    (283, 0x20, 0x94000000, 0x94000000 | 0x20 >> 2),  # CALL26
    (275, 0x20, 0x90000000, 0x90000000),  # ADR_PREL_PG_HI21: the same page
])
def test_arm_relocations(relocation: int, value: int, before: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine: what is written is looked at, not executed."""
    monkeypatch.setattr(Image, "_protect", lambda *_: None)
    data = bytearray(tiny(183, relocation=relocation, value=value))
    struct.pack_into("<I", data, HEADER, before)
    assert struct.unpack_from("<I", Image(bytes(data)).memory)[0] == after


@pytest.mark.parametrize(("options", "message"), [
    ({"machine": 243}, "machine 243"),
    ({"kind": 3}, "not a relocatable file"),
    ({"relocation": 42}, "relocation 42"),
    ({"machine": 183, "relocation": 9999}, "relocation 9999"),
    ({"symbol": b"system"}, "refers to system"),
    ({"offset": 1 << 40}, "damaged"),
    ({"value": 1 << 40}, "beyond its section"),
    ({"section": 77}, "section 77"),
])
def test_what_is_not_known_is_refused(options: dict, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        Image(tiny(**options))


@rig.examples(100)
@given(data=st.data())
def test_hostile_bytes_are_refused_or_harmless(data: st.DataObject, code: bytes) -> None:
    """Nothing is executed here; loading alone must never do worse than raise Unsupported."""
    whole = tiny(symbol=b"memset") if data.draw(st.booleans()) else code
    changed = bytearray(whole)
    tables = range(len(whole) - 64 * 5, len(whole)) if whole is not code else range(len(whole))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(st.integers(0, 63), st.sampled_from(tables)))
        changed[place] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    with contextlib.suppress(Unsupported):
        Image(bytes(changed[:length]))
