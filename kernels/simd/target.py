"""Instruction sets that kernels are compiled for, and which of them this machine can execute."""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "EDGERT_SIMD"
"""Environment variable that forces a target by name."""


@dataclass(frozen=True)
class Target:
    """An instruction set; `cpu` and `features` are LLVM's names, None for the host's own.

    tokens, key_tiles: what its registers hold; speed only, never the result.
    """

    name: str
    machine: str
    needs: frozenset[str]
    """Features in the operating system's spelling (/proc/cpuinfo) without which it cannot execute."""
    cpu: str | None = None
    features: str | None = None
    tokens: tuple[int, ...] = (4, 1)
    """Tokens that a matrix kernel keeps in registers at once: as many of the first as there are, then of the next."""
    key_tiles: int = 1
    """Tiles of 16 positions whose scores attention keeps in registers at once, for six rows."""


X86 = "x86_64"
ARM = "aarch64"
_AVX2 = frozenset({"avx2", "fma", "f16c"})

TARGETS = (
    Target("avx512vnni", X86, _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"},
           tokens=(8, 4, 1), key_tiles=2),
    Target("avxvnni", X86, _AVX2 | {"avx_vnni"}),
    Target("avx2", X86, _AVX2, "haswell", ""),
    Target("neon-dotprod", ARM, frozenset({"asimddp"})),
    Target("plain", X86, frozenset(), "x86-64", ""),
    Target("plain", ARM, frozenset(), "generic", "+neon"),
)
"""Best first."""


def machine() -> str:
    """The processor's architecture, as TARGETS spells it."""
    name = platform.machine().lower()
    return {"amd64": X86, "arm64": ARM}.get(name, name)


def processor_features() -> frozenset[str]:
    """What the processor offers, in the spelling of /proc/cpuinfo; on macOS what every Mac of use has."""
    if sys.platform == "darwin":
        return frozenset({"asimddp"}) if machine() == ARM else _AVX2
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def executable_targets() -> list[Target]:
    """The targets that this machine can execute, best first; never empty on x86-64 and 64-bit ARM.

    Under emulation /proc/cpuinfo describes the host, so a target named in EDGERT_SIMD is believed.
    """
    features, here, forced = processor_features(), machine(), os.environ.get(VARIABLE)
    return [t for t in TARGETS if t.machine == here and (t.needs <= features or t.name == forced)]


def choose() -> Target:
    """The best target for this machine, or the one that EDGERT_SIMD names. Raises ValueError if there is none."""
    targets = executable_targets()
    forced = os.environ.get(VARIABLE)
    if forced:
        for target in targets:
            if target.name == forced:
                return target
        known = ", ".join(t.name for t in targets) or "none"
        raise ValueError(f"{VARIABLE}={forced}: this {machine()} processor cannot execute it; it can: {known}")
    if not targets:
        raise ValueError(f"{machine()}: edgert has kernels for x86-64 and 64-bit ARM processors only")
    return targets[0]
