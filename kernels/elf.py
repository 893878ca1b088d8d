"""Loads the kernels' object file into memory.

Written by hand because the alternatives cost too much: LLVM's loader takes 110 MB of memory, and making a shared
library for dlopen needs a linker, which many machines do not have.

It is an ELF relocatable file for this machine that refers to nothing outside itself but a few functions of C. The
allocated sections are laid end to end, relocated (System V ABI for AMD64, ELF for the Arm 64-bit architecture), made
executable. Whatever is not known here is refused; `native` then loads the object through LLVM.
"""

import ctypes
import mmap
import struct
from typing import NamedTuple

ALLOCATED, NOBITS, RELA, SYMTAB = 2, 8, 4, 2
_EXTERNAL = {"memset", "memcpy", "memmove", "fmaf"}
"""Functions of libc and libm; the last is how a machine without fused multiply-add does one."""


class Unsupported(Exception):
    """The object file holds something that this loader does not know, or is damaged."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Image:
    """Relocated machine code, executable while this object lives. Raises Unsupported."""

    def __init__(self, data: bytes) -> None:
        try:
            self._load(data)
        except (struct.error, LookupError, ValueError, OverflowError, OSError, MemoryError) as error:
            raise Unsupported(f"a damaged object file: {error}") from None

    def _load(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise Unsupported("not a little-endian 64-bit ELF file")
        kind, machine = struct.unpack_from("<HH", data, 16)
        table, = struct.unpack_from("<Q", data, 40)
        _, count, _ = struct.unpack_from("<HHH", data, 58)
        if kind != 1:
            raise Unsupported("not a relocatable file")
        self._machine = machine
        self._data = data
        self._sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i)) for i in range(count)]
        self._symbols, self._names = self._read_symbols()
        self._places: dict[int, int] = {}
        size = 0
        for i, section in enumerate(self._sections):
            if section.flags & ALLOCATED and section.size:
                size = -(-size // max(section.alignment, 1)) * max(section.alignment, 1)
                self._places[i] = size
                size += section.size
        libraries = ctypes.CDLL(None)
        stubs = -(-size // 16) * 16
        externals = sorted({name for name, (_, where, _) in zip(self._names, self._symbols, strict=True)
                            if where == 0 and name})
        unknown = [name for name in externals if name not in _EXTERNAL or not hasattr(libraries, name)]
        if unknown:
            raise Unsupported(f"refers to {', '.join(unknown)}")
        self.memory = mmap.mmap(-1, stubs + 16 * len(externals))
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for i, place in self._places.items():
            section = self._sections[i]
            if section.kind != NOBITS:
                self.memory[place:place + section.size] = data[section.offset:section.offset + section.size]
        self._externals = {}
        for i, name in enumerate(externals):
            target = ctypes.cast(getattr(libraries, name), ctypes.c_void_p).value or 0
            self._externals[name] = self.base + stubs + 16 * i
            self.memory[stubs + 16 * i:stubs + 16 * i + 16] = self._stub(target)
        for section in self._sections:
            if section.kind == RELA and section.info in self._places:
                for at in range(section.offset, section.offset + section.size, 24):
                    self._relocate(self._places[section.info], *struct.unpack_from("<QQq", data, at))
        self._protect(libraries)

    def symbol(self, name: str) -> int:
        """The address of a symbol. Raises KeyError."""
        index = self._names.index(name) if name in self._names else -1
        if index < 0:
            raise KeyError(name)
        return self._address(index)

    def _read_symbols(self) -> tuple[list[tuple[int, int, int]], list[str]]:
        symbols, names = [], []
        for section in self._sections:
            if section.kind != SYMTAB:
                continue
            strings = self._sections[section.link].offset
            for at in range(section.offset, section.offset + section.size, 24):
                name, _, _, where, value, _ = struct.unpack_from("<IBBHQQ", self._data, at)
                end = self._data.index(b"\0", strings + name)
                symbols.append((name, where, value))
                names.append(self._data[strings + name:end].decode())
        return symbols, names

    def _address(self, symbol: int) -> int:
        _, where, value = self._symbols[symbol]
        if where == 0:
            return self._externals[self._names[symbol]]
        if where not in self._places:
            raise Unsupported(f"symbol {self._names[symbol]} in section {where}")
        if value > self._sections[where].size:
            raise Unsupported(f"symbol {self._names[symbol]} beyond its section")
        return self.base + self._places[where] + value

    def _stub(self, target: int) -> bytes:
        """Machine code that jumps to an address anywhere in memory."""
        if self._machine == 62:
            return b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", target) + b"\xcc\xcc"  # jmp [rip + 0]
        return struct.pack("<IIQ", 0x58000050, 0xD61F0200, target)  # ldr x16, +8; br x16

    def _relocate(self, section: int, offset: int, info: int, addend: int) -> None:
        at = section + offset
        place, kind = self.base + at, info & 0xFFFFFFFF
        target = self._address(info >> 32) + addend
        if self._machine == 62:
            if kind == 1:  # R_X86_64_64
                struct.pack_into("<Q", self.memory, at, target)
            elif kind in (2, 4):  # R_X86_64_PC32, R_X86_64_PLT32
                struct.pack_into("<i", self.memory, at, target - place)
            else:
                raise Unsupported(f"x86-64 relocation {kind}")
        elif self._machine == 183:
            self._relocate_arm(kind, at, place, target)
        else:
            raise Unsupported(f"machine {self._machine}")

    def _relocate_arm(self, kind: int, at: int, place: int, target: int) -> None:
        if kind == 257:  # R_AARCH64_ABS64
            struct.pack_into("<Q", self.memory, at, target)
            return
        if kind in (260, 261):  # R_AARCH64_PREL64, R_AARCH64_PREL32
            struct.pack_into("<q" if kind == 260 else "<i", self.memory, at, target - place)
            return
        word, = struct.unpack_from("<I", self.memory, at)
        low_bits = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # ADD_ABS, LDST8, 16, 32, 64, 128 _LO12_NC
        if kind in (275, 276):  # R_AARCH64_ADR_PREL_PG_HI21(_NC)
            pages = (target >> 12) - (place >> 12)
            word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
        elif kind in low_bits:
            word |= (target & 0xFFF) >> low_bits[kind] << 10
        elif kind in (282, 283):  # R_AARCH64_JUMP26, R_AARCH64_CALL26
            word |= target - place >> 2 & 0x3FFFFFF
        else:
            raise Unsupported(f"ARM relocation {kind}")
        struct.pack_into("<I", self.memory, at, word)

    def _protect(self, libraries: ctypes.CDLL) -> None:
        read_and_execute = 5
        if libraries.mprotect(ctypes.c_void_p(self.base), ctypes.c_size_t(len(self.memory)), read_and_execute):
            raise Unsupported("the operating system refuses executable memory")
        if self._machine == 183:
            try:
                clear = ctypes.CDLL("libgcc_s.so.1")["__clear_cache"]
            except (OSError, AttributeError):
                raise Unsupported("libgcc_s is not there to clear the instruction cache") from None
            clear(ctypes.c_void_p(self.base), ctypes.c_void_p(self.base + len(self.memory)))
