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
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.integrations.bitnet import pack_weights

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
    every: int = 1
    """Of how many tokens the logits after one are kept."""
    own: dict[str, Any] = field(default_factory=dict)
    """What only the family has."""


def plain(theta: float = 10000.0, share: float | None = None) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **({} if share is None else {"partial_rotary_factor": share})}


def small(family: str, *sizes: int, tied: bool = False, rope: dict[str, Any] | None = None, act: str = "silu",
          **own: Any) -> Spec:
    """A model whose files are small: of layers, hidden size, neurons, heads, key-value heads, size of a head."""
    return Spec(family, torch.bfloat16, *sizes, tied, rope or plain(), act, 12, own)


LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
            "short_factor": [1 + 0.1 * i for i in range(6)], "long_factor": [1.2 + 0.9 * i for i in range(6)]}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_BETWEEN = {**YARN, "rope_theta": 1000.0, "truncate": False}
GRANITE = {"embedding_multiplier": 6.0, "residual_multiplier": 0.22, "attention_multiplier": 0.3, "logits_scaling": 4.0}


SPECS = {
    "llama3-tied": Spec("llama", torch.float32, 3, 40, 44, 5, 1, 16, True, LLAMA3_ROPE),
    "llama-f16": Spec("llama", torch.float16, 2, 56, 80, 7, 1, 20, False),
    "qwen2-bf16-tied": Spec("qwen2", torch.bfloat16, 2, 80, 98, 5, 1, 16, True),
    "qwen2": Spec("qwen2", torch.float32, 3, 32, 44, 4, 2, 12, False, {"rope_type": "default", "rope_theta": 1000.0}),
    "llama-relu": Spec("llama", torch.float32, 2, 24, 76, 3, 1, 8, True, act="relu"),
    "qwen2-relu2": Spec("qwen2", torch.float32, 2, 24, 70, 2, 1, 12, False, act="relu2"),
    "opt": Spec("opt", torch.float32, 2, 24, 76, 3, 3, 8, True, act="relu"),
    "gemma2-bf16": Spec("gemma2", torch.bfloat16, 3, 56, 76, 4, 2, 20, True, own={
        "sliding_window": 17, "query_pre_attn_scalar": 6, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 20.0}),
    "gemma3": Spec("gemma3", torch.float32, 3, 40, 44, 5, 1, 12, True, own={
        "sliding_window": 9, "query_pre_attn_scalar": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, rope={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
    "qwen3": small("qwen3", 2, 24, 44, 3, 1, 20, rope=plain(5000.0)),
    "qwen3-tied-yarn": small("qwen3", 2, 24, 70, 4, 2, 12, tied=True, rope=YARN),
    "mistral": small("mistral", 2, 24, 44, 3, 1, 12, rope={**plain(), "rope_type": "linear", "factor": 3.0},
                     sliding_window=17),
    "ministral3": small("ministral3", 2, 24, 44, 2, 1, 16, tied=True, rope={
        **YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}),
    "phi3": small("phi3", 2, 24, 44, 2, 1, 12, rope=LONGROPE, original_max_position_embeddings=64,
                  sliding_window=23),
    "phi3-long-tied": small("phi3", 2, 32, 70, 2, 2, 16, tied=True, original_max_position_embeddings=32, rope={
        **LONGROPE, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32}),
    "granite": small("granite", 2, 24, 44, 3, 1, 8, tied=True, **GRANITE),
    "smollm3": small("smollm3", 3, 32, 38, 3, 1, 8, tied=True, rope=plain(500.0), no_rope_layer_interval=2),
    "smollm3-untied": small("smollm3", 2, 24, 38, 2, 2, 12, no_rope_layers=[0, 1]),
    "olmo2": small("olmo2", 2, 24, 44, 2, 1, 12),
    "stablelm": small("stablelm", 2, 24, 44, 2, 1, 12, rope=plain(share=0.4), use_qkv_bias=True),
    "stablelm-aside": small("stablelm", 1, 24, 38, 3, 3, 8, rope=plain(share=0.25), use_parallel_residual=True),
    "phi2": small("phi", 2, 24, 44, 2, 2, 12, rope=plain(share=0.4), act="gelu_new"),
    "gptneox": small("gpt_neox", 2, 24, 44, 3, 3, 8, rope=plain(share=0.25), act="gelu"),
    "gptneox-in-turn": small("gpt_neox", 1, 24, 70, 2, 2, 12, rope=plain(share=1.0), act="gelu",
                             use_parallel_residual=False),
    "ministral": small("ministral", 2, 24, 38, 3, 1, 8, sliding_window=9,
                       layer_types=["sliding_attention", "full_attention"]),
    "mixtral": Spec("mixtral", torch.float32, 2, 24, 44, 3, 1, 8, False, every=12, own={
        "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 17}),
    "olmoe": Spec("olmoe", torch.float32, 2, 24, 44, 3, 1, 8, False, every=12, own={
        "num_experts": 7, "num_experts_per_tok": 3}),
    "qwen3moe": Spec("qwen3_moe", torch.float32, 2, 24, 38, 3, 1, 16, False, every=12, own={
        "moe_intermediate_size": 44, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "qwen2moe": Spec("qwen2_moe", torch.float32, 2, 24, 38, 3, 1, 8, False, every=12, own={
        "moe_intermediate_size": 44, "shared_expert_intermediate_size": 52, "num_experts": 5,
        "num_experts_per_tok": 2}),
    "granitemoe": Spec("granitemoe", torch.float32, 2, 24, 44, 3, 1, 8, True, every=12, own={
        **GRANITE, "num_local_experts": 6, "num_experts_per_tok": 2}),
    "granitemoeshared": Spec("granitemoeshared", torch.float32, 2, 24, 44, 3, 1, 8, False, every=12, own={
        **GRANITE, "num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 38}),
    # A window with which no token of those kept has two experts nearly alike, which rounding would swap.
    "gptoss": Spec("gpt_oss", torch.float32, 2, 32, 64, 4, 2, 12, False, YARN_BETWEEN, every=12, own={
        "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 19}),
    "deepseek": Spec("deepseek", torch.float32, 2, 24, 70, 3, 1, 8, False, every=12, own={
        "moe_intermediate_size": 44, "shared_expert_intermediate_size": 88, "num_experts": 5, "num_experts_per_tok": 2,
        "mlp_only_layers": [0], "qkv_bias": False}),
    "qwen2-window": small("qwen2", 3, 24, 38, 3, 1, 8, use_sliding_window=True, sliding_window=17, max_window_layers=1),
    "qwen3-window": small("qwen3", 2, 24, 38, 2, 1, 12, tied=True, use_sliding_window=True, sliding_window=9,
                          layer_types=["sliding_attention", "full_attention"]),
    "qwen2moe-window": small("qwen2_moe", 3, 24, 38, 3, 1, 8, moe_intermediate_size=32,
                             shared_expert_intermediate_size=38, num_experts=4, num_experts_per_tok=2,
                             use_sliding_window=True, sliding_window=13, max_window_layers=2),
    "qwen3moe-window": small("qwen3_moe", 2, 24, 38, 3, 1, 8, tied=True, moe_intermediate_size=32, num_experts=4,
                             num_experts_per_tok=2, norm_topk_prob=True, use_sliding_window=True, sliding_window=21),
    "smollm3-window": small("smollm3", 3, 24, 38, 3, 1, 8, tied=True, no_rope_layer_interval=2,
                            use_sliding_window=True, sliding_window=11),
    "stablelm-heads": small("stablelm", 2, 64, 38, 2, 2, 32, tied=True, rope=plain(share=0.25), qk_layernorm=True,
                            use_parallel_residual=True),
    "ministral3-long": small("ministral3", 2, 24, 38, 3, 1, 8, tied=True, rope={
        **YARN, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.4}),
    "bitnet": small("bitnet", 2, 40, 52, 5, 1, 8, tied=True, act="relu2"),
}
MODELS = {"llama": "Llama", "qwen2": "Qwen2", "opt": "OPT", "qwen3": "Qwen3", "mistral": "Mistral",
          "ministral": "Ministral", "ministral3": "Ministral3", "phi3": "Phi3", "granite": "Granite",
          "smollm3": "SmolLM3", "olmo2": "Olmo2", "stablelm": "StableLm", "phi": "Phi", "gpt_neox": "GPTNeoX",
          "gemma2": "Gemma2", "gemma3": "Gemma3", "mixtral": "Mixtral", "olmoe": "Olmoe", "qwen3_moe": "Qwen3Moe",
          "qwen2_moe": "Qwen2Moe", "granitemoe": "GraniteMoe", "granitemoeshared": "GraniteMoeShared",
          "gpt_oss": "GptOss", "deepseek": "Qwen2Moe", "bitnet": "BitNet"}
"""What transformers calls them."""


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
    make_model = getattr(transformers, MODELS[spec.family] + "ForCausalLM")
    own: dict[str, Any] = {
        "intermediate_size": spec.intermediate, "num_key_value_heads": spec.key_value_heads, "head_dim": spec.head_dim,
        "rms_norm_eps": 1e-5, "rope_parameters": dict(spec.rope), "hidden_act": spec.act}
    if spec.family == "opt":
        own = {"ffn_dim": spec.intermediate, "word_embed_proj_dim": spec.hidden, "activation_function": spec.act}
    if spec.family.startswith("gemma"):
        del own["hidden_act"]
    own |= spec.own
    config = make_model.config_class(
        hidden_size=spec.hidden, num_hidden_layers=spec.layers, num_attention_heads=spec.heads, vocab_size=VOCABULARY,
        max_position_embeddings=128, tie_word_embeddings=spec.tied, bos_token_id=0, eos_token_id=[0, 2],
        pad_token_id=None, attn_implementation="eager", **own)
    model = make_model(config).float().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.named_parameters():
            noise = torch.randn(values.shape, generator=random)
            if values.ndim >= 2:
                # Queries and keys larger than usual: attention that looks at single tokens, not at all of them alike.
                gain = 3 * values.shape[-1] ** 0.5 if "gate_up_proj_bias" in name else (  # some are clamped
                    1.6 if "q_proj" in name or "k_proj" in name else 1.2 if "qkv" in name or "query" in name else 1.0)
                embeds = "embed" in name and "embed_out" not in name
                values.copy_(noise * gain / (1.0 if embeds else values.shape[-1] ** 0.5))
            else:
                center = 0 if spec.family.startswith("gemma") else 1  # whose norms multiply by 1 + w
                values.copy_(0.5 * noise if name.endswith("bias") else center + 0.3 * noise)
            if "shared_expert_gate" in name and spec.family == "deepseek":
                values.zero_()  # so its sigmoid is a half
            if spec.family == "bitnet" and "proj" in name:
                scale = values.abs().mean().to(spec.dtype).float()
                values.copy_((values / scale).round().clamp(-1, 1) * scale)
            values.copy_(values.to(spec.dtype).float())
    return model


def as_deepseek(folder: Path) -> None:
    """Transformers has no DeepSeekMoE, but a Qwen2 of which each token takes half of what all share computes the same:
    made one in place."""
    tensors = load_file(folder / "model.safetensors")
    made = {name.replace("shared_expert", "shared_experts"): values * (0.5 if "shared_expert.down" in name else 1)
            for name, values in tensors.items() if "shared_expert_gate" not in name}
    save_file(made, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    kept = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
            "hidden_act", "rms_norm_eps", "rope_parameters", "num_experts_per_tok", "norm_topk_prob", "bos_token_id",
            "eos_token_id")
    config = {name: config[name] for name in kept} | {
        "model_type": "deepseek", "n_routed_experts": config["num_experts"], "n_shared_experts": 2,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "scoring_func": "softmax"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def as_packed(folder: Path) -> None:
    """The ternary matrices of a BitNet as its files have them: four weights in a byte, and a scale."""
    made = {}
    for name, values in load_file(folder / "model.safetensors").items():
        made[name] = values
        if "proj" in name:
            made[name] = pack_weights((values / values.abs().max()).round().float())
            made[name.removesuffix("weight") + "weight_scale"] = values.abs().max()[None]
    save_file(made, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                     "quantization_mode": "offline", "modules_to_not_convert": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def make(name: str) -> None:
    spec, seed = SPECS[name], 1 + list(SPECS).index(name)
    model = build(spec, seed)
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    kept = {} if spec.every == 1 else {"kept": np.arange(spec.every - 1, TOKENS, spec.every, dtype=np.int32)}
    np.savez(HERE / f"logits-{name}.npz", tokens=tokens.astype(np.int32),
             logits=logits[kept.get("kept", slice(None))].astype("<f4"), **kept)
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(spec.dtype).save_pretrained(folder)
    if spec.family == "deepseek":
        as_deepseek(folder)
    if spec.family == "bitnet":
        as_packed(folder)
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(name, {path.name: path.stat().st_size for path in sorted(folder.iterdir())}, f"logits ±{logits.std():.3g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or SPECS:
        make(chosen)
