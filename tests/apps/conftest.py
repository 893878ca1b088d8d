"""What tests of the applications share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_models import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine where models can be chosen; at the end of a test nothing waits for its hub."""
    made = Machine(tmp_path)
    with made.hub:
        yield made
        made.hub.go_on.set()
