import os
from pathlib import Path

import pytest
from fake_catalogue import CONTENT, write_wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel mirror: a folder that pip takes for all there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number in range(3):
        write_wheel(folder, number, CONTENT[number * 100_000:(number + 1) * 100_000])
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return folder
