"""Direct reading: what was written comes back, from any aligned range, and failures are one sentence."""

import ctypes
import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgert.errors import BundleError
from edgert.residency.device import _identity
from edgert.residency.file import ALIGNMENT, FlashFile, aligned
from edgert.residency.region import Region

SIZE = 40 * ALIGNMENT + 1234
CONTENT = random.Random(0).randbytes(SIZE)
shared_fixture = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (path := tmp_path / "bundle.edge").write_bytes(CONTENT)
    return path


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    region = Region(64 * ALIGNMENT, "a test")
    yield region
    region.close()


@pytest.fixture(params=["direct", "refused when opened", "refused when read"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with direct reading, and without."""
    system_open, system_preadv = os.open, os.preadv

    def refusing_open(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_open(path, flags, *more)

    def refusing_preadv(handle: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_preadv(handle, buffers, offset)

    if request.param != "direct" and not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT to refuse")
    if request.param == "refused when opened":
        monkeypatch.setattr(os, "open", refusing_open)
    elif request.param == "refused when read":
        monkeypatch.setattr(os, "preadv", refusing_preadv)
    return str(request.param)


def read(file: FlashFile, region: Region, offset: int, length: int, needed: int) -> bytes:
    with region.view(0, length) as buffer:
        file.read(offset, buffer, needed)
        return bytes(buffer[:needed])


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 30))
def test_aligned_encloses_closely(start: int, length: int) -> None:
    low, high = aligned(start, start + length)
    assert low % ALIGNMENT == high % ALIGNMENT == 0
    assert low <= start < low + ALIGNMENT
    assert high - ALIGNMENT < start + length <= high


@shared_fixture
@given(first=st.integers(0, 40), count=st.integers(1, 64))
def test_any_aligned_range_comes_back(mode: str, path: Path, region: Region, first: int, count: int) -> None:
    offset, length = first * ALIGNMENT, count * ALIGNMENT
    needed = min(length, SIZE - offset)
    with FlashFile(path) as file:
        assert file.size == SIZE
        assert read(file, region, offset, length, needed) == CONTENT[offset:offset + needed]
        assert mode == "direct" or not file.direct


def test_on_a_file_system_in_memory(region: Region) -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        pytest.skip("no /dev/shm here")
    path = folder / f"edgert-test-{os.getpid()}"
    try:
        path.write_bytes(CONTENT)
        with FlashFile(path) as file:  # Linux 6.6 and later read it directly
            assert read(file, region, 40 * ALIGNMENT, 2 * ALIGNMENT, 1234) == CONTENT[-1234:]
    finally:
        path.unlink()


def test_several_threads(mode: str, path: Path) -> None:
    def work(number: int) -> bool:
        region = Region(4 * ALIGNMENT, "a test")
        pages = random.Random(number).choices(range(37), k=50)
        return all(read(file, region, page * ALIGNMENT, 4 * ALIGNMENT, 4 * ALIGNMENT)
                   == CONTENT[page * ALIGNMENT:(page + 4) * ALIGNMENT] for page in pages)

    with FlashFile(path) as file, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def short_reads(most: int) -> Callable[[int, list[memoryview], int], int]:
    system = os.preadv
    return lambda handle, buffers, offset: system(handle, [buffers[0][:most]], offset)


@pytest.mark.parametrize("most", [ALIGNMENT, 3 * ALIGNMENT, 5 * ALIGNMENT // 2 // 512 * 512])
def test_short_reads_are_continued(path: Path, region: Region, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(os, "preadv", short_reads(most))
    with FlashFile(path) as file:
        direct = file.direct
        assert read(file, region, 0, 41 * ALIGNMENT, SIZE) == CONTENT
        assert file.direct == direct


def test_more_than_there_is_is_truncation(mode: str, path: Path, region: Region) -> None:
    with FlashFile(path) as file:
        with pytest.raises(BundleError, match=rf"bundle\.edge: ends at offset {SIZE}, .* convert the model again$"):
            read(file, region, 40 * ALIGNMENT, ALIGNMENT, 1235)
        with pytest.raises(BundleError, match=f"ends at offset {SIZE}"):
            read(file, region, 80 * ALIGNMENT, ALIGNMENT, 1)
        read(file, region, 80 * ALIGNMENT, ALIGNMENT, 0)


@pytest.mark.parametrize("rest", [0, 7 * ALIGNMENT, 7 * ALIGNMENT + 100])
def test_truncation_while_open(mode: str, path: Path, region: Region, rest: int) -> None:
    with FlashFile(path) as file:
        os.truncate(path, rest)
        with pytest.raises(BundleError, match=f"ends at offset {rest}, before what its header promises"):
            read(file, region, 0, 41 * ALIGNMENT, SIZE)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_read_error_is_one_sentence(path: Path, region: Region, monkeypatch: pytest.MonkeyPatch,
                                      number: int) -> None:
    def failing(handle: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", failing)
    with FlashFile(path) as file, pytest.raises(BundleError) as caught:
        read(file, region, 8192, ALIGNMENT, 1)
    assert str(caught.value) == (f"{path}: reading at offset 8192 failed: {os.strerror(number).lower()}; "
                                 "check the disk, or copy the file to another")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.edge: cannot be opened: no such file or directory"):
        FlashFile(tmp_path / "none.edge")
    with pytest.raises(BundleError, match="cannot be opened: is a directory"):
        FlashFile(tmp_path)


def test_misaligned_buffers_are_a_bug(path: Path, region: Region) -> None:
    with FlashFile(path) as file:
        for offset, start, length in ((1, 0, ALIGNMENT), (0, 0, 100), (0, 512, ALIGNMENT)):
            with region.view(start, length) as buffer, pytest.raises(AssertionError):
                file.read(offset, buffer, 0)


def test_nothing_stays_in_the_page_cache(mode: str, tmp_path: Path) -> None:
    if not _identity(tmp_path)[1].endswith("(ext4)"):
        pytest.skip("where the page cache is the disk, or is not all there is, mincore says something else")
    size = 8 << 20
    with (path := tmp_path / "large").open("wb") as written:
        written.write(bytes(size))
        written.flush()
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    region = Region(1 << 20, "a test")
    with FlashFile(path) as file:
        for at in range(0, size, 1 << 20):
            read(file, region, at, 1 << 20, 1 << 20)
    region.close()
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        resident = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        assert mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), resident) == 0
        del anchor
    assert sum(state & 1 for state in resident) <= len(resident) // 10
