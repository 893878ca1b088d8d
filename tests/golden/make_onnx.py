"""Makes tests/golden/onnx/*: tiny random models as real exporters write them to ONNX.

    python tests/golden/make_onnx.py [NAME ...]

Needs what make_models.py needs, onnxruntime with onnx-ir, and the exporter: onnxruntime-genai for genai-*, onnxscript
for torch-*, and for optimum-*, in an environment of its own, optimum-onnx with the transformers 4 that it takes. What
they compute the tests ask onnxruntime. Its GroupQueryAttention takes heads of 16, 32, ... components only.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from make_models import CHAT_TEMPLATE, HERE, LLAMA3_ROPE, Spec, build, tokenizer
from transformers import PreTrainedTokenizerFast

F32 = torch.float32
THETA = {"rope_type": "default", "rope_theta": 1000.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def genai(spec: Spec, folder: Path, made: Path, *options: str) -> None:
    """onnxruntime-genai's model builder. options: the precision, then its extra options."""
    precision, *further = options
    subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", made, "-o", folder, "-e", "cpu",
                    "-c", made / "cache", "-p", precision, *(["--extra_options", *further] if further else [])],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def optimum(spec: Spec, folder: Path, made: Path, *options: str) -> None:
    """Hugging Face's optimum, through torch's older exporter; with `q4` then quantized as transformers.js has it."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from optimum.exporters.onnx import main_export

    main_export(str(made), folder, task="text-generation-with-past", device="cpu", do_validation=False)
    if "q4" in options:
        quantizer = MatMulNBitsQuantizer(onnx.load(folder / "model.onnx"), block_size=32)
        quantizer.process()
        (folder / "onnx").mkdir()
        quantizer.model.save_model_to_file(str(folder / "onnx" / "model_q4.onnx"))
        (folder / "model.onnx").unlink()


def newer(spec: Spec, folder: Path, made: Path, *options: str) -> None:
    """torch's newer exporter, without the stack traces that it writes down for every node."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=F32, attn_implementation="eager").eval()
    folder.mkdir()
    torch.onnx.export(model, (torch.zeros(2, 7, dtype=torch.long),), folder / "model.onnx", input_names=["input_ids"],
                      output_names=["logits"], dynamo=True, kwargs={"use_cache": False}, external_data=False,
                      dynamic_shapes={"input_ids": {0: "texts", 1: "tokens"}, "use_cache": None})
    graph = onnx.load(folder / "model.onnx")
    for node in graph.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        node.ClearField("metadata_props")
        node.metadata_props.extend(kept)
    del graph.graph.value_info[:]
    onnx.save(graph, folder / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / name, folder / name)


Exporter = Callable[..., None]
MODELS: dict[str, tuple[Exporter, Spec, tuple[str, ...]]] = {
    "genai-llama-int4": (genai, Spec("llama", F32, 2, 48, 76, 3, 1, 16, True, LLAMA3_ROPE), ("int4",)),
    "genai-qwen2-int4": (genai, Spec("qwen2", F32, 1, 72, 140, 4, 2, 16, False, THETA),
                         ("int4", "is_symmetric=false", "block_size=64", "matmul_mixed_precision=mixed_layers:int8")),
    "genai-qwen2-f32": (genai, Spec("qwen2", F32, 1, 36, 44, 3, 1, 16, True, THETA),
                        ("fp32", "fuse_mlp_gate_up=true")),
    "optimum-qwen2": (optimum, Spec("qwen2", F32, 1, 32, 44, 4, 2, 12, True, PLAIN), ()),
    "optimum-llama-q4": (optimum, Spec("llama", F32, 1, 36, 44, 3, 1, 8, False, PLAIN), ("q4",)),
    "torch-llama": (newer, Spec("llama", F32, 1, 24, 40, 3, 1, 16, True, THETA), ()),
}


def make(name: str) -> None:
    export, spec, options = MODELS[name]
    folder = HERE / "onnx" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        build(spec, 100 + list(MODELS).index(name)).save_pretrained(made)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token="<|endoftext|>", eos_token="<|im_end|>",
                                chat_template=CHAT_TEMPLATE).save_pretrained(made)
        export(spec, folder, Path(made), *options)
    print(name, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or MODELS:
        make(chosen)
