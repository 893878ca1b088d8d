"""Numbers of bytes, as people write and read them."""

import re

from .errors import ModelError

_LARGEST = 1 << 62


def parse_size(text: str) -> int:
    """The number of bytes that a text such as "600M", "1.5G" or "800MB" means.

    K, M and G are powers of 1024, as in the kernel, docker and systemd, and so are KiB, MiB and GiB; KB, MB and GB are
    powers of 1000. Raises ModelError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?B)?|B)?\s*", text.upper())
    if not match:
        raise ModelError(f"{text!r} is not a size; write it like 600M or 1.5G")
    number, unit, suffix = match.groups()
    power = 0 if unit is None else "KMGT".index(unit) + 1
    size = float(number) * (1000 if suffix == "B" else 1024) ** power
    if size > _LARGEST:
        raise ModelError(f"{text[:20].strip()!r} is more memory than any machine has")
    return int(size)


def size_text(size: float) -> str:
    """A number of bytes for people to read: "600 MiB"."""
    return f"{size / (1 << 20):.0f} MiB" if size >= 10 << 20 else f"{size / (1 << 20):.1f} MiB"
