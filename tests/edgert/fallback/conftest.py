"""A tiny model of a family that edgert does not know."""

from pathlib import Path

import pytest
from tiny_gguf import write_foreign


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("foreign") / "tiny.gguf")
