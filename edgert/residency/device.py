"""What a storage device can do: measured once, by reading a bundle that is on it, and kept for later starts."""

import itertools
import json
import math
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from edgert.errors import BundleError
from edgert.kernels.native import cache_folder

from .file import ALIGNMENT, FlashFile
from .region import Region

ENOUGH = 32 << 20
"""Bytes. A measurement with a smaller file is not kept: it would be read repeatedly from some cache."""

_VERSION = 1
_BLOCK = 2 << 20
_LEAST_IN_FLIGHT, _MOST_IN_FLIGHT = 4 << 20, 8 << 20
_POINTS = [(chunk, depth) for chunk in (64 << 10, 256 << 10, 1 << 20, 2 << 20) for depth in (1, 2, 4, 8)
           if chunk * depth <= _MOST_IN_FLIGHT]
_ROOM = _MOST_IN_FLIGHT + 2 * _BLOCK
_ROUNDS = 3
_BOX_S = 2.5  # no slice begins later
_SPAN, _FINALISTS = 256 << 20, 5
_LATENCY_S = 0.1
_SLICE_S = 0.04  # no read of a slice begins later
_TAIL_S = 0.1  # what is in flight at the end of a slice takes no longer
_GOOD_ENOUGH = 0.95


@dataclass(frozen=True)
class Device:
    """The measured speed of a storage device.

    name: for people, such as "vda (ext4)". direct: reads can bypass the page cache. chunk_bytes, depth: the read size
    and number of simultaneous reads that come within 5 % of the best bandwidth with the least memory. bandwidth:
    bytes per second of such reads, in order through the file and with checksums. latency_s: seconds for a single read
    of 4 KiB. grid: all measurements of random reads, each with "chunk" (bytes), "depth" and "bytes_per_s".
    """

    name: str
    direct: bool
    chunk_bytes: int
    depth: int
    bandwidth: float
    latency_s: float
    grid: list[dict[str, float]]

    @property
    def readers(self) -> int:
        """Number of threads that read while streaming."""
        return readers(self.depth)


def readers(depth: int) -> int:
    """Number of threads that keep `depth` reads going: one more, since some are checking what they have read."""
    return depth + 1


def device_of(path: str | os.PathLike[str], *, again: bool = False) -> Device:
    """The device that a bundle is on. It is measured (three seconds) if it never was, or with `again`.

    Raises BundleError if the file cannot be read.
    """
    key, _ = _identity(path)
    stored = _load()
    if key in stored and not again:
        return stored[key]
    device = probe(path)
    if Path(path).stat().st_size >= ENOUGH:
        _save({**stored, key: device})
    return device


def measure_folder(folder: Path) -> None:
    """Measure the device that a folder is on, if that was never done, with a file that is removed then. Raises OSError,
    or BundleError."""
    if _identity(folder)[0] in _load():
        return
    with tempfile.NamedTemporaryFile(prefix=".probe-", dir=folder) as file:
        for _ in range(_SPAN // ENOUGH):
            file.write(os.urandom(ENOUGH))
        file.flush()
        os.fsync(file.fileno())
        device_of(file.name)


def stored_devices() -> list[Device]:
    """All devices that were measured on this machine so far."""
    return list(_load().values())


def probe(path: str | os.PathLike[str]) -> Device:
    """Measure the device that a file is on, by reading the file for less than three seconds.

    Raises BundleError if the file cannot be read or is empty.
    """
    deadline = time.perf_counter() + _BOX_S
    with FlashFile(path) as file, closing(Region(_ROOM, "measuring the disk", huge=True)) as region, \
            ThreadPoolExecutor(readers(max(depth for _, depth in _POINTS))) as pool:
        if not file.size:
            raise BundleError(f"{file.path}: is empty; nothing can be measured with it")
        shuffle = random.Random(0).shuffle
        latency = _latency(file, region)
        # What has been read once may come from a cache next time, of the device or of a host below it; so the rounds
        # walk through the file's blocks together and, if it is large enough, come to none of them twice.
        blocks = list(range(0, max(file.size - _BLOCK + 1, 1), _BLOCK))
        shuffle(blocks)
        share = len(blocks) // (_ROUNDS * len(_POINTS))
        walk = itertools.cycle(blocks)
        rates: dict[tuple[int, int], list[float]] = {}
        # Disks drift: each point is measured once in every round, the rounds go through the points up, down and up.
        for chunk, depth in _POINTS + _POINTS[::-1] + _POINTS:
            best = max((rate for of_point in rates.values() for rate in of_point), default=math.inf)
            if chunk * depth > best * _TAIL_S:
                continue  # a slow device: reads in flight would outlast the slice, and it is busy with fewer
            if rates and time.perf_counter() > deadline:
                break
            wanted = max(share, -(-2 * chunk * depth // _BLOCK))
            pieces = [at for block in itertools.islice(walk, wanted) for at in range(block, block + _BLOCK, chunk)
                      if at + chunk <= file.size or at == 0]
            shuffle(pieces)
            del pieces[len(pieces) // depth * depth or depth:]  # the same number for each thread, if none is faster
            rates.setdefault((chunk, depth), []).append(_rate(file, region, pool, pieces, chunk, depth))
        direct = file.direct
        medians = {point: statistics.median(of_point) for point, of_point in rates.items()}
        finalists = sorted((p for p in medians if p[0] * p[1] >= _LEAST_IN_FLIGHT), key=lambda p: -medians[p])
        finalists = finalists[:_FINALISTS] or list(medians)
        steady = _steady(file, region, pool, finalists, deadline) or {p: medians[p] for p in finalists}
    chunk, depth = choose(steady)
    return Device(_identity(path)[1], direct, chunk, depth, steady[chunk, depth], latency,
                  [{"chunk": c, "depth": d, "bytes_per_s": round(rate)} for (c, d), rate in medians.items()])


def _steady(file: FlashFile, region: Region, pool: ThreadPoolExecutor, points: list[tuple[int, int]],
            deadline: float) -> dict[tuple[int, int], float]:
    """The bandwidth of each point when the file is read as weights are streamed: in order, each piece checked, by as
    many threads."""
    rates: dict[tuple[int, int], list[float]] = {}
    at = 0
    for _ in range(_ROUNDS):
        for chunk, depth in points:
            if time.perf_counter() > deadline:
                break
            pieces = [start % max(file.size - chunk + 1, 1) // chunk * chunk for start in range(at, at + _SPAN, chunk)]
            rate = _rate(file, region, pool, pieces, chunk, readers(depth), check=True)
            at = (at + int(rate * _SLICE_S) // _BLOCK * _BLOCK) % max(file.size, 1)
            rates.setdefault((chunk, depth), []).append(rate)
    return {point: statistics.median(of_point) for point, of_point in rates.items()}


def choose(rates: dict[tuple[int, int], float]) -> tuple[int, int]:
    """The (chunk, depth) with the least memory in flight, then the fewest threads, that is nearly the fastest.

    One read at a time is only chosen where nothing else was measured: it leaves the disk idle in between, and what a
    short measurement shows of such differences is partly luck, while memory in flight costs little.
    """
    rates = {p: rate for p, rate in rates.items() if p[1] > 1 and p[0] * p[1] >= _LEAST_IN_FLIGHT} or rates
    best = max(rates.values())
    return min((point for point, rate in rates.items() if rate >= _GOOD_ENOUGH * best),
               key=lambda point: (point[0] * point[1], point[1]))


def _latency(file: FlashFile, region: Region) -> float:
    """Seconds for 4 KiB alone: the median of reads all over the file."""
    pages, pick = -(-file.size // ALIGNMENT), random.Random(1).randrange
    times: list[float] = []
    deadline = time.perf_counter() + _LATENCY_S
    with region.view(0, ALIGNMENT) as buffer:
        while len(times) < 64 and (not times or time.perf_counter() < deadline):
            at = pick(pages) * ALIGNMENT
            started = time.perf_counter()
            file.read(at, buffer, min(ALIGNMENT, file.size - at))
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _rate(file: FlashFile, region: Region, pool: ThreadPoolExecutor, pieces: list[int], chunk: int,
          depth: int, *, check: bool = False) -> float:
    """Bytes/s while `depth` threads read, and `check`, pieces of the file, `chunk` bytes each, for a slice of time."""
    queue = iter(pieces)
    deadline = time.perf_counter() + _SLICE_S

    def work(number: int) -> list[tuple[float, float]]:
        times = []
        with region.view(number * chunk, chunk) as buffer:
            for at in queue:
                started = time.perf_counter()
                file.read(at, buffer, min(chunk, file.size - at))
                if check:
                    xxhash.xxh3_64_intdigest(buffer)
                times.append((started, time.perf_counter()))
                if times[-1][1] > deadline:
                    break
        return times

    jobs = [pool.submit(work, number) for number in range(depth)]
    times = [pair for job in jobs for pair in job.result()]
    read = sum(min(chunk, file.size - at) for at in pieces[:len(times)])
    return read / (max(stop for _, stop in times) - min(start for start, _ in times))


def _identity(path: str | os.PathLike[str]) -> tuple[str, str]:
    """What tells the device and file system that hold a file from others, and their name for people.

    Raises BundleError when there is no such file.
    """
    try:
        number = Path(path).stat().st_dev
    except OSError as error:
        raise BundleError(f"{path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None
    mount = _mount(Path(path).resolve())
    if mount is None:
        return f"device {number}", f"device {number}"
    source, kind = mount
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not block.exists():  # Btrfs has device numbers of its own; the mount names the device
        try:
            number = Path(source).stat().st_rdev
        except OSError:
            number = 0
        block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not number or not block.exists():
            return f"{source}, {kind}", f"{source} ({kind})" if source != kind else kind
    block = block.resolve()
    disk = block.parent if (block / "partition").exists() else block
    model = _first(disk, "device/model", "device/name", "dm/name")
    serial = _first(disk, "wwid", "serial", "device/serial", "device/wwid", "dm/uuid")
    key = f"{os.major(number)}:{os.minor(number)}, {block.name}, {model}, {serial}, {_first(block, 'size')}, {kind}"
    return key, f"{model or block.name} ({kind})"


def _first(folder: Path, *names: str) -> str:
    """The first of some small files of /sys that is there and says something."""
    for name in names:
        try:
            if text := (folder / name).read_text(errors="replace").strip():
                return text
        except OSError:
            continue
    return ""


def _mount(path: Path) -> tuple[str, str] | None:
    """Source and type of the file system at a path, on Linux."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    best, found = -1, None
    for line in lines:  # proc_pid_mountinfo(5); of mounts over one another the last one counts
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:
            kind, source, *_ = right.split()
            best, found = len(point.parts), (source, kind)
    return found


def _store() -> Path:
    return cache_folder().parent / "devices.json"


def _load() -> dict[str, Device]:
    """Devices by identity; none when the file is not there, damaged or of another version."""
    try:
        content = json.loads(_store().read_bytes())
        if content["version"] != _VERSION:
            return {}
        return {key: _checked(values) for key, values in content["devices"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _checked(values: dict[str, Any]) -> Device:
    """A stored device. Raises TypeError or ValueError for what `probe` cannot have found."""
    device = Device(**values)
    counts, speeds = (device.chunk_bytes, device.depth), (device.bandwidth, device.latency_s)
    if not all(type(n) is int and n > 0 for n in counts) or device.chunk_bytes % ALIGNMENT \
            or not all(type(x) is float and 0 < x < math.inf for x in speeds) \
            or type(device.name) is not str or type(device.direct) is not bool \
            or not all(point.keys() == {"chunk", "depth", "bytes_per_s"} for point in device.grid):
        raise ValueError("not a device")
    return device


def _save(devices: dict[str, Device]) -> None:
    content = {"version": _VERSION, "devices": {key: asdict(device) for key, device in devices.items()}}
    path = _store()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        Path(name).replace(path)
    except OSError:
        return  # it will be measured again at the next start
