"""The processes that measure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgert.errors import EdgertError
from edgert.measuring.bench import EngineProcess
from edgert.measuring.engine_process import Measured, Passes, measure


def test_a_process_that_complains_a_lot(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds. Were it to hang, it would end itself."""
    (tmp_path / "sitecustomize.py").write_text("import faulthandler, sys\n"
                                               "quiet = open('/dev/null', 'w')\n"
                                               "faulthandler.dump_traceback_later(60, exit=True, file=quiet)\n"
                                               "sys.stderr.write('x' * 1_000_000)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = EngineProcess("engine_process", [str(smollm2), "1", "64", "off", "", "0"])
    try:
        assert process.load_s > 0
        assert len(process.measure([1, 2, 3], decode=4, prefill=0)["token_ids"]) == 4
    finally:
        process.close()


def test_a_process_that_fails(tmp_path: Path) -> None:
    with pytest.raises(EdgertError, match=r"none\.edge: .*no such file"):
        EngineProcess("engine_process", [str(tmp_path / "none.edge"), "1", "64", "off", "", "0"])


def test_an_answer_goes_on_where_the_last_one_ended(smollm2: Path) -> None:
    """And it is that of a longer answer, with guesses or without."""
    found = []
    for mode in ("off", "auto"):
        process = EngineProcess("engine_process", [str(smollm2), "2", "64", mode, "q8", "0"])
        try:
            whole = process.measure([5, 6, 7], decode=12, prefill=0)["token_ids"]
            first = process.measure([5, 6, 7], decode=5, prefill=0, go_on=True)["token_ids"]
            found.append((whole, first + process.measure(first[-1:], decode=7, prefill=0, go_on=True)["token_ids"]))
        finally:
            process.close()
    assert found[0] == found[1] and found[0][0] == found[0][1]


@pytest.mark.parametrize(("sizes", "rate"), [
    ([1] * 8, 1.0),  # after the first quarter, three tokens: five in as many seconds
    ([1, 3, 1, 3], 2.0),  # four in the two seconds after the pass that ended with the fourth
    ([1, 7], 7.0)])
def test_speed_is_counted_by_passes(sizes: list[int], rate: float) -> None:
    """A pass a second; what one brings comes at once."""
    def decode(prompt: Sequence[int], count: int) -> Passes:
        return [(100.0 + number, [7] * size) for number, size in enumerate(sizes)]

    result = measure(Measured(decode, lambda tokens: np.zeros((1, 1)), lambda: None), [1], 8, 0)
    assert result["decode_tok_s"] == rate
    assert result["tokens_per_pass"] == 7 / (len(sizes) - 1)
    assert result["token_ids"] == [7] * 8
