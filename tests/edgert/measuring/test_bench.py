"""The processes that measure."""

from pathlib import Path

import pytest

from edgert.errors import EdgertError
from edgert.measuring.bench import EngineProcess


def test_a_process_that_complains_a_lot(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds. Were it to hang, it would end itself."""
    (tmp_path / "sitecustomize.py").write_text("import faulthandler, sys\n"
                                               "quiet = open('/dev/null', 'w')\n"
                                               "faulthandler.dump_traceback_later(60, exit=True, file=quiet)\n"
                                               "sys.stderr.write('x' * 1_000_000)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = EngineProcess("engine_process", [str(smollm2), "1", "64"])
    try:
        assert process.load_s > 0
        assert len(process.measure([1, 2, 3], decode=4, prefill=0)["token_ids"]) == 4
    finally:
        process.close()


def test_a_process_that_fails(tmp_path: Path) -> None:
    with pytest.raises(EdgertError, match=r"none\.edge: .*no such file"):
        EngineProcess("engine_process", [str(tmp_path / "none.edge"), "1", "64"])
