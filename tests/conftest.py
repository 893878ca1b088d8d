"""What all tests share: the reference models, a converted one, and kernels compiled before the clock starts."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Before numpy is imported. The matrices of tests are tiny: threads that wait for one another take several times the
# processor time of their products. Workers, and programs that tests start, have it too.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from filelock import FileLock
from hypothesis import settings
from tested_targets import TESTED

import edgert
from edgert.converters import calibration_text
from edgert.download import pull
from edgert.kernels import native

settings.register_profile("edgert", derandomize=True, deadline=None)
settings.load_profile("edgert")

MODELS = Path(os.environ.get("EDGERT_TEST_MODELS", Path.home() / ".cache" / "edgert-test-models"))


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once, before workers start, for every instruction set that tests go through. No test goes by
    the defaults of whoever runs it."""
    os.environ["EDGERT_CONFIG"] = os.devnull
    if not hasattr(config, "workerinput"):
        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            list(compilers.map(native.object_file, TESTED))


@pytest.fixture
def quick_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that convert many times: a quarter of the text to calibrate with, and no waiting for the disk, since
    nothing here loses power."""
    monkeypatch.setattr(calibration_text, "MAX_WINDOWS", 4)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker takes whole files, the largest first, so that what their tests share is made once. Tests of small files,
    some of which are long, come last and one by one: in the end no worker is idle for long."""
    sizes = Counter(item.path for item in items)
    for item in items:
        if item.get_closest_marker("xdist_group") is None and sizes[item.path] >= 10:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}/{item.path.stem}"))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct Q4_1, fetched if need be."""
    MODELS.mkdir(parents=True, exist_ok=True)
    return pull("smollm2-135m", MODELS)


@pytest.fixture(scope="session")
def qwen_gguf() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct Q4_K_M: there already, or fetched by `make test-all`."""
    if not os.environ.get("EDGERT_TEST_ALL") and not (MODELS / "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf").exists():
        pytest.skip("the 1.1 GB model is not here; make test-all fetches it")
    return pull("qwen2.5-coder-1.5b", MODELS)


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """Gemma 3 270M Q4_K_M: there already, or fetched by `make test-all`."""
    if not os.environ.get("EDGERT_TEST_ALL") and not (MODELS / "gemma-3-270m-q4_k_m.gguf").exists():
        pytest.skip("Gemma 3 270M is not here; make test-all fetches it")
    return pull("gemma-3-270m", MODELS)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a bundle of the default preset, made by the first worker that wants it. Nobody writes to it."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(folder / "smollm2.lock"):
        if not (out := folder / "smollm2.edge").exists():
            edgert.convert(str(smollm2_gguf), out)
    return out


@pytest.fixture(scope="session")
def model(smollm2: Path) -> Iterator[edgert.Model]:
    """SmolLM2, loaded with two threads."""
    with edgert.load(smollm2, threads=2, context=1024) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 with 8-bit weights, a folder, fetched if need be."""
    MODELS.mkdir(parents=True, exist_ok=True)
    return pull("all-minilm-l6-v2", MODELS)
