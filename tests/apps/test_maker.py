"""The process that fetches and converts a model, ended at any moment of its life."""

import time

import pytest
from fake_models import DEFAULT, Machine

from edgert.apps.maker import CancelledError, Maker
from edgert.telling import AGAIN_S

pytestmark = pytest.mark.xdist_group("server")


def test_cancelled_while_python_starts_and_later(machine: Machine, monkeypatch: pytest.MonkeyPatch,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    """It says nothing, and leaves no more than what a download goes on from."""
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    machine.hub.go_on.clear()
    for seconds in (0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2):
        maker = Maker(DEFAULT)
        time.sleep(seconds)
        begun = time.monotonic()
        maker.cancel()
        assert time.monotonic() - begun < 2 * AGAIN_S, "it had to be killed"
        with pytest.raises(CancelledError):
            maker.wait()
        assert capfd.readouterr().err == "", seconds
        assert not machine.models.exists() or set(machine.left()) <= {f"{DEFAULT}.gguf.partial"}
