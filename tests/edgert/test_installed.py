"""An edgert that was installed, not linked to its clone, called in folders whose files no process may import.

`python -m` looks into the current folder first, and in a clone that holds an `edgert` without `edgert.kernels`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("installed")  # in one worker: it is installed once
HERE = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository: building writes into it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("apps", "converters", "edgert", "kernels", "models"):
        shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HERE / name, folder)
    return folder


@pytest.fixture(scope="session")
def program(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`edgert` from `pip install .` in an environment of its own, which takes the dependencies from this one's."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files do not count
    subprocess.run([sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet",
                    "--no-deps", "--no-build-isolation", "."], cwd=clone, check=True)
    return environment / "bin" / "edgert"


@pytest.fixture(params=["clone", "root", "numpy.py"])
def folder(request: pytest.FixtureRequest, clone: Path, tmp_path: Path) -> Path:
    if request.param == "numpy.py":
        for name in ("numpy.py", "json.py", "numba.py", "pip.py"):
            (tmp_path / name).write_text("raise SystemExit('a file of the current folder was imported')")
    return {"clone": clone, "root": Path("/"), "numpy.py": tmp_path}[request.param]


def test_compiling(program: Path, folder: Path, tmp_path: Path) -> None:
    """Numba and all kernels are imported, and the first is about to be compiled."""
    with subprocess.Popen([program, "doctor"], cwd=folder, env={**os.environ, "EDGERT_CACHE": str(tmp_path / "cache")},
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert line.startswith("compiling ")


@pytest.mark.parametrize("folder", ["clone", "numpy.py"], indirect=True)
def test_measuring_processes(program: Path, folder: Path, smollm2: Path) -> None:
    for command in ("bench", "-r", "1", "-n", "4", "--prefill", "0"), ("plan",):
        done = subprocess.run([program, *command, smollm2, "--json"], cwd=folder, capture_output=True, text=True,
                              timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_shipped_questions_are_there(program: Path, folder: Path) -> None:
    code = ("from edgert.measuring import prompts, questions\n"
            "print(len(questions.read_questions('shipped')), len(prompts.read_prompts('shipped')))")
    done = subprocess.run([program.with_name("python"), "-I", "-c", code], cwd=folder, capture_output=True, text=True,
                          check=False)
    assert done.stdout == "200 50\n", done.stderr


def test_the_page_is_there(program: Path, folder: Path) -> None:
    code = ("from importlib.resources import files\n"
            "page = files('edgert.apps') / 'page'\n"
            "print(*sorted(str(f.relative_to(page)) for f in page.rglob('*') if f.is_file()), sep='\\n')")
    done = subprocess.run([program.with_name("python"), "-I", "-c", code], cwd=folder, capture_output=True, text=True,
                          check=False)
    page = HERE / "apps" / "page"
    assert done.stdout.split() == sorted(str(file.relative_to(page)) for file in page.rglob("*") if file.is_file())
