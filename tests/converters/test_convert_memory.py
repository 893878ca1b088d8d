"""Converting takes memory for a part of a tensor, not for a model."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_model

SCRIPT = """
import re, sys
from pathlib import Path
from edgert.converters import calibration, packing
from edgert.converters.convert import convert
def peak():  # ru_maxrss would begin with the parent's
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
small, large, out, preset, at_once, calibrate = sys.argv[1:]
packing._VALUES_AT_ONCE = calibration._VALUES_AT_ONCE = int(at_once)
convert(small, out, preset, calibrate=calibrate == "yes")  # what importing and compiling take is taken now
before = peak()
convert(large, out, preset, calibrate=calibrate == "yes")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("preset", "calibrate"), [("q4", "yes"), ("f32", "no")])
def test_memory(tmp_path: Path, preset: str, calibrate: str) -> None:
    """Growth while a model of 76 MB is converted, a megabyte of weights (262,144 of them) at a time.

    A part is there as read, as float32, and as it is rounded and packed: some 7 MB in all were seen. Beside it
    stands a layer's packed down projection (2 MB in 4 bits, 12 MB in float32), which is written by groups of columns.
    Calibrating to 4 bits holds some vectors of 4,096 tokens, and the moments of a matrix's inputs several times over.
    """
    small = write_model(tmp_path / "small")
    large = write_model(tmp_path / "large", hidden_size=1024, intermediate_size=3072, num_hidden_layers=2)
    content = (large / "model.safetensors").stat().st_size
    assert content > 70e6
    down = 1024 * 3072 * (0.6 if preset == "q4" else 4)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(small), str(large), str(tmp_path / "m.edge"), preset,
                           str(1 << 18), calibrate], capture_output=True, text=True, check=True)
    calibrating = 4 * (4096 * (8 * 1024 + 3072) + 10 * 1024 ** 2) if (preset, calibrate) == ("q4", "yes") else 0
    assert int(done.stdout) < down + 20e6 + calibrating
