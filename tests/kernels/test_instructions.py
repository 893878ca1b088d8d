"""That the integer dot product became the instruction it is meant to be: its encoding, searched in the machine code."""

import re

import pytest

from edgert.kernels import native

_P = b"[" + b"".join(b"\\x%02x" % n for n in range(5, 128, 8)) + b"]"
"""The byte of a prefix that means W0, 66, and in VEX 256 bits, with any register."""
ENCODINGS: dict[str, re.Pattern[bytes]] = {
    # EVEX.66.0F38.W0 50 and VEX.256.66.0F38 04 (Intel, Software Developer's Manual, volume 2).
    "vpdpbusd": re.compile(rb"\x62." + _P + rb".\x50", re.DOTALL),
    "vpmaddubsw": re.compile(rb"\xc4[\x02\x22\x42\x62\x82\xa2\xc2\xe2]" + _P + rb"\x04", re.DOTALL),
    # SDOT (vector), 128 bits: 0100 1110 100m mmmm 1001 01nn nnnd dddd, little-endian (Arm ARM, C7.2).
    "sdot": re.compile(rb"[\x00-\xff][\x94-\x97][\x80-\x9f]\x4e", re.DOTALL),
}
EXPECTED = {"avx512vnni": "vpdpbusd", "avxvnni": "vpdpbusd", "avx2": "vpmaddubsw", "neon-dotprod": "sdot",
            "plain": None}


def test_the_dot_product_is_the_instruction(target: str) -> None:
    code = native.object_file(target)
    found = {name: len(pattern.findall(code)) for name, pattern in ENCODINGS.items()}
    expected = EXPECTED[target]
    for name, count in found.items():
        if name == expected:
            assert count >= 200, f"{name}: {count} times"
        elif expected in ("vpdpbusd", "vpmaddubsw") or expected is None:
            assert count < 20, f"{name}: {count} times in code for {target}"


@pytest.mark.parametrize(("name", "code"), [
    ("vpdpbusd", "62 12 25 58 50 34 0a"),  # vpdpbusd zmm14, zmm11, dword [rdx + r9]{1to16}
    ("vpdpbusd", "62 f2 75 48 50 c2"),  # vpdpbusd zmm0, zmm1, zmm2
    ("vpmaddubsw", "c4 e2 75 04 c2"),  # vpmaddubsw ymm0, ymm1, ymm2
    ("sdot", "20 94 82 4e"),  # sdot v0.4s, v1.16b, v2.16b
    ("sdot", "ff 97 9f 4e"),  # sdot v31.4s, v31.16b, v31.16b
])
def test_encodings(name: str, code: str) -> None:
    assert ENCODINGS[name].match(bytes.fromhex(code))
