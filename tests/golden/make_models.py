"""Makes tests/golden/models/* and tests/golden/logits-*.npz: tiny random models, and what they compute in transformers.

    python tests/golden/make_models.py [NAME ...]

Needs `pip install edgert[golden]`. Sizes are odd on purpose: matrices that end in the middle of a tile or a block,
heads that are no power of two, more embeddings than tokens. Biases and norms are random: none is left out unseen.
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
VOCABULARY, TOKENS = 263, 60
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CHAT_TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
                 "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@dataclass(frozen=True)
class Spec:
    family: str
    dtype: torch.dtype
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    tied: bool
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    act: str = "silu"
    experts: int = 0
    per_token: int = 0


SPECS = {
    "llama3-tied": Spec("llama", torch.float32, 3, 40, 44, 5, 1, 16, True, LLAMA3_ROPE),
    "llama-f16": Spec("llama", torch.float16, 2, 56, 80, 7, 1, 20, False),
    "qwen2-bf16-tied": Spec("qwen2", torch.bfloat16, 2, 80, 98, 5, 1, 16, True),
    "qwen2": Spec("qwen2", torch.float32, 3, 32, 44, 4, 2, 12, False, {"rope_type": "default", "rope_theta": 1000.0}),
    "llama-relu": Spec("llama", torch.float32, 2, 24, 76, 3, 1, 8, True, act="relu"),
    "qwen2-relu2": Spec("qwen2", torch.float32, 2, 24, 70, 2, 1, 12, False, act="relu2"),
    "opt": Spec("opt", torch.float32, 2, 24, 76, 3, 3, 8, True, act="relu"),
    "mixtral": Spec("mixtral", torch.float32, 2, 24, 44, 3, 1, 8, False, experts=5, per_token=2),
    "olmoe": Spec("olmoe", torch.float32, 2, 24, 44, 3, 1, 8, False, experts=7, per_token=3),
    "qwen3-moe": Spec("qwen3_moe", torch.float32, 2, 24, 44, 3, 1, 16, False, experts=6, per_token=2),
}


def tokenizer() -> Tokenizer:
    """Byte-level BPE of the 256 bytes, two merges and three special tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=261, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    made.train_from_iterator(["the then them, the"] * 8, trainer)
    assert made.get_vocab_size() == 261
    return made


def build(spec: Spec, seed: int) -> torch.nn.Module:
    """A model in float32 whose weights are exact in spec.dtype."""
    kinds: dict[str, tuple[Any, Any]] = {"llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
                                         "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
                                         "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM),
                                         "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
                                         "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
                                         "opt": (transformers.OPTConfig, transformers.OPTForCausalLM)}
    make_config, make_model = kinds[spec.family]
    own: dict[str, Any] = {
        "intermediate_size": spec.intermediate, "num_key_value_heads": spec.key_value_heads, "head_dim": spec.head_dim,
        "rms_norm_eps": 1e-5, "rope_parameters": spec.rope, "hidden_act": spec.act}
    if spec.family == "opt":
        own = {"ffn_dim": spec.intermediate, "word_embed_proj_dim": spec.hidden, "activation_function": spec.act,
               "pad_token_id": None}
    if spec.experts:
        own |= {"norm_topk_prob": spec.family == "qwen3_moe", "moe_intermediate_size": spec.intermediate,
                "num_experts": spec.experts, "num_local_experts": spec.experts, "num_experts_per_tok": spec.per_token}
    config = make_config(
        hidden_size=spec.hidden, num_hidden_layers=spec.layers, num_attention_heads=spec.heads, vocab_size=VOCABULARY,
        max_position_embeddings=128, tie_word_embeddings=spec.tied, bos_token_id=0, eos_token_id=[0, 2],
        attn_implementation="eager", **own)
    model = make_model(config).float().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.named_parameters():
            noise = torch.randn(values.shape, generator=random)
            if values.ndim >= 2:
                # Queries and keys larger than usual: attention that looks at single tokens, not at all of them alike.
                gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
                values.copy_(noise * gain / (1.0 if "embed" in name else values.shape[-1] ** 0.5))
            else:
                values.copy_(0.5 * noise if name.endswith("bias") else 1 + 0.3 * noise)
            values.copy_(values.to(spec.dtype).float())
    return model


def make(name: str) -> None:
    spec, seed = SPECS[name], 1 + list(SPECS).index(name)
    model = build(spec, seed)
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.savez(HERE / f"logits-{name}.npz", tokens=tokens.astype(np.int32), logits=logits.astype("<f4"))
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(spec.dtype).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(name, {path.name: path.stat().st_size for path in sorted(folder.iterdir())}, f"logits ±{logits.std():.3g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or SPECS:
        make(chosen)
