from collections.abc import Iterator

import pytest
import rig

from edgert.kernels.simd.target import executable_targets


@pytest.fixture(scope="session", params=[t.name for t in executable_targets()])
def target(request: pytest.FixtureRequest) -> str:
    """The name of an instruction set that this machine can execute; tests that take it run once for each."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _close_teams() -> Iterator[None]:
    yield
    rig.close_teams()
