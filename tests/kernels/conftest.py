from collections.abc import Iterator

import pytest
import rig
from tested_targets import TESTED


@pytest.fixture(scope="session", params=TESTED)
def target(request: pytest.FixtureRequest) -> str:
    """The name of an instruction set that this machine can execute; tests that take it run once for each."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _close_teams() -> Iterator[None]:
    yield
    rig.close_teams()
