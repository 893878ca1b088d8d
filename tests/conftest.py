import os
from pathlib import Path
import pytest
FOLDER = Path(os.environ.get("EDGERT_TEST_MODELS", Path.home() / ".cache" / "edgert-test-models"))
@pytest.fixture(scope="session")
def smollm2_gguf(): return FOLDER / "SmolLM2-135M-Instruct.Q4_1.gguf"
@pytest.fixture(scope="session")
def qwen_gguf():
    p = FOLDER / "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf"
    if not p.exists(): pytest.skip("no qwen")
    return p
