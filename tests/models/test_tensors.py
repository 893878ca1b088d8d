"""What each family says its tensors are; and that it says so in the order in which its wiring uses them."""

from collections.abc import Callable, Sequence

import pytest
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map

from edgert.models.config import Config
from edgert.models.families import FAMILIES
from edgert.models.tensors import FEED_FORWARD, FeedForward, Role, feed_forward_parts

LAYERS = 2
Q, KV, HIDDEN, NEURONS, VOCABULARY = 24, 12, 16, 40, 100
"""The sizes that shapes are of, all different."""

PLAIN = [
    ("input_layernorm.weight", (HIDDEN,), Role.NORM),
    ("self_attn.q_proj.weight", (Q, HIDDEN), Role.QUERY),
    ("self_attn.k_proj.weight", (KV, HIDDEN), Role.KEY),
    ("self_attn.v_proj.weight", (KV, HIDDEN), Role.VALUE),
    ("self_attn.o_proj.weight", (HIDDEN, Q), Role.ATTENTION_OUTPUT),
    ("post_attention_layernorm.weight", (HIDDEN,), Role.NORM),
    ("mlp.gate_proj.weight", (NEURONS, HIDDEN), Role.GATE),
    ("mlp.up_proj.weight", (NEURONS, HIDDEN), Role.UP),
    ("mlp.down_proj.weight", (HIDDEN, NEURONS), Role.DOWN),
]
BIASES = {("self_attn.q_proj.bias", (Q,), Role.BIAS), ("self_attn.k_proj.bias", (KV,), Role.BIAS),
          ("self_attn.v_proj.bias", (KV,), Role.BIAS)}
OPT = {
    *((f"{norm}.{part}", (HIDDEN,), role) for norm in ("self_attn_layer_norm", "final_layer_norm")
      for part, role in (("weight", Role.NORM), ("bias", Role.BIAS))),
    *((f"self_attn.{part}_proj.weight", (HIDDEN, HIDDEN), role) for part, role in (
        ("q", Role.QUERY), ("k", Role.KEY), ("v", Role.VALUE), ("out", Role.ATTENTION_OUTPUT))),
    *((f"self_attn.{part}_proj.bias", (HIDDEN,), Role.BIAS) for part in ("q", "k", "v", "out")),
    ("fc1.weight", (NEURONS, HIDDEN), Role.UP), ("fc1.bias", (NEURONS,), Role.UP_BIAS),
    ("fc2.weight", (HIDDEN, NEURONS), Role.DOWN), ("fc2.bias", (HIDDEN,), Role.DOWN_BIAS)}
EXPERTS, HEAD = 5, 6
MIXTURE = {*PLAIN[:6], ("mlp.gate.weight", (EXPERTS, HIDDEN), Role.ROUTER),
           ("mlp.experts.gate_proj.weight", (EXPERTS * NEURONS, HIDDEN), Role.GATE),
           ("mlp.experts.up_proj.weight", (EXPERTS * NEURONS, HIDDEN), Role.UP),
           ("mlp.experts.down_proj.weight", (EXPERTS * HIDDEN, NEURONS), Role.DOWN)}


def norms(query: int, key: int) -> set[tuple[str, tuple[int], Role]]:
    return {("self_attn.q_norm.weight", (query,), Role.QUERY_NORM), ("self_attn.k_norm.weight", (key,), Role.KEY_NORM)}


LAYER = {"llama": set(PLAIN), "qwen2": set(PLAIN) | BIASES, "opt": OPT, "mixtral": MIXTURE,
         "olmoe": MIXTURE | norms(Q, KV), "qwen3moe": MIXTURE | norms(HEAD, HEAD)}
"""Tensors within a layer, of some families. Those of the others, tests/golden's models have."""
POSITIONS = 64
AROUND = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN), Role.EMBEDDING),
          ("model.norm.weight", (HIDDEN,), Role.NORM), ("lm_head.weight", (VOCABULARY, HIDDEN), Role.HEAD)]
MIXTURES = ("mixtral", "olmoe", "qwen3moe", "qwen2moe", "granitemoe", "deepseek", "gpt-oss")
OUTSIDE = {**dict.fromkeys(("llama", "qwen2", *MIXTURES), AROUND), "opt": [
    ("model.decoder.embed_tokens.weight", (VOCABULARY, HIDDEN), Role.EMBEDDING),
    ("model.decoder.embed_positions.weight", (POSITIONS + 2, HIDDEN), Role.POSITION),
    ("model.decoder.final_layer_norm.weight", (HIDDEN,), Role.NORM),
    ("model.decoder.final_layer_norm.bias", (HIDDEN,), Role.BIAS),
    ("lm_head.weight", (VOCABULARY, HIDDEN), Role.HEAD)]}
"""And outside the layers."""


def config_of(architecture: str, *, tied: bool = False, layers: int = LAYERS) -> Config:
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": 2} if architecture in MIXTURES else {}
    if architecture in ("qwen3moe", "qwen2moe", "deepseek"):
        experts["moe_intermediate_size"] = NEURONS
    experts |= {"qwen2moe": {"shared_expert_intermediate_size": 6}, "granitemoe": {
        "model_type": "granitemoeshared", "shared_intermediate_size": 6}, "deepseek": {
        "n_routed_experts": EXPERTS, "n_shared_experts": 2, "first_k_dense_replace": 1},
        "gpt-oss": {"hidden_size": 32, "intermediate_size": 64}, "bitnet": {"head_dim": HIDDEN // 4}}.get(
            architecture, {})
    return FAMILIES[architecture].Config.from_hf({
        "hidden_size": HIDDEN, "intermediate_size": NEURONS, "ffn_dim": NEURONS, "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": HEAD, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "partial_rotary_factor": 1.0, "tie_word_embeddings": tied,
        **experts})


class Recorder:
    """A network that writes down which weights it is asked for, in turn."""

    def __init__(self, config: Config) -> None:
        self.used: list[str] = []
        self._layers, self._dense = feed_forward_parts(config.tensors()), config.dense_layers
        self._with_biases = getattr(config, "biases", False)
        self._routers = [spec.name for spec in config.tensors() if spec.role is Role.ROUTER]

    def embedding(self, weight: str, *, scale: float = 1.0) -> None:
        self.used.append(weight)

    def add_positions(self, x: None, weight: str, *, first: int) -> None:
        self.used.append(weight)

    def norm(self, x: None, weight: str, *, bias: str | None = None) -> None:
        self.used += [weight] if bias is None else [weight, bias]

    def linear(self, x: None, names: Sequence[str], *, bias: bool = False, add_to: None = None) -> None:
        for name in names:
            self.used += [name + ".weight", name + ".bias"] if bias else [name + ".weight"]

    def plain(self, x: None) -> None:
        pass

    def head_norms(self, qkv: None, query_weight: str, key_weight: str, *, whole: bool = False) -> None:
        self.used += [query_weight, key_weight]

    def head_layer_norms(self, qkv: None, query_weight: str, key_weight: str) -> None:
        self.used += [query_weight, key_weight]

    def add(self, y: None, *, to: None, norm: str | None = None, scale: float = 1.0) -> None:
        self.used += [norm] if norm else []

    def attention(self, qkv: None, layer: int, *, sinks: str | None = None) -> None:
        self.used += [sinks] if sinks else []

    def glu(self, gate_up: None, columns: int, *, weighed: bool = False) -> None:
        pass

    def feed_forward(self, x: None, layer: int, *, add_to: None = None) -> None:
        part = self._layers[layer - self._dense]
        self.used += [spec.name for spec in (part.gate, part.up, part.up_bias, part.down, part.down_bias) if spec]

    def experts(self, x: None, layer: int, *, add_to: None, scale: float = 1.0,
                meanwhile: Callable[[], None] = lambda: None) -> None:
        router, biases = self._routers[layer - self._dense], self._with_biases
        self.used += [router, router.removesuffix("weight") + "bias"] if biases else [router]
        meanwhile()
        for spec in self._layers[layer - self._dense].matrices:
            self.used += [spec.name.removesuffix("weight") + "bias", spec.name] if biases else [spec.name]

    def logits(self, x: None, norm: str, head: str, *, norm_bias: str | None = None,
               head_bias: str | None = None) -> None:
        self.norm(x, norm, bias=norm_bias)
        self.used += [head + ".weight"] if head_bias is None else [head + ".weight", head_bias]


@pytest.mark.parametrize("architecture", LAYER)
def test_roles(architecture: str) -> None:
    specs = list(config_of(architecture).tensors())
    assert [spec[:3] for spec in specs if spec.layer is None] == OUTSIDE[architecture]
    prefix = "model.decoder.layers" if architecture == "opt" else "model.layers"
    for layer in range(LAYERS):
        found = [(spec.name.removeprefix(f"{prefix}.{layer}."), spec.shape, spec.role)
                 for spec in specs if spec.layer == layer]
        assert len(found) == len(set(found)) and set(found) == LAYER[architecture]
    assert len(specs) == len(OUTSIDE[architecture]) + LAYERS * len(LAYER[architecture])
    assert [spec.role for spec in config_of(architecture, tied=True).tensors()] == [
        spec.role for spec in specs if spec.role is not Role.HEAD]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_order_of_use(architecture: str, tied: bool) -> None:
    """In which tensors stand in a bundle, and importances are asked for."""
    config = config_of(architecture, tied=tied)
    network = Recorder(config)
    FAMILIES[architecture].wire(config, network)
    # A norm may be computed twice, an embedding be the output head.
    assert list(dict.fromkeys(network.used)) == [spec.name for spec in config.tensors()]


@pytest.mark.parametrize("architecture", [name for name in FAMILIES if name != "opt"])
def test_names_in_gguf_files_are_those_of_llama_cpp(architecture: str) -> None:
    """As its converter names what has the canonical name; a family that has no name there is one of Llama's. It knows
    no Gemma 2 and no BitNet with an output head of its own."""
    named = FAMILIES[architecture].Config.architecture
    kind = next((kind for kind in MODEL_ARCH if MODEL_ARCH_NAMES[kind] == named), MODEL_ARCH.LLAMA)
    names = get_tensor_name_map(kind, LAYERS)
    config = config_of(architecture, tied=architecture in ("gemma2", "bitnet"))
    fused = [tensor for tensor in config.fused() if tensor.name]
    parts = {part.name for tensor in fused for part in tensor.parts}
    for spec in (*fused, *(spec for spec in config.tensors() if spec.name not in parts)):
        name = spec.name.replace(".sinks", ".sinks.weight")  # as its converter calls them before it looks
        for sub_norm, other in (("attn_sub_norm", "inner_attn_ln"), ("ffn_sub_norm", "ffn_layernorm")):
            name = name.replace(sub_norm, other)  # as in the only files of BitNet that it converts
        assert spec.gguf == names.get_name(name, try_suffixes=(".weight", ".bias"))


def test_llama_cpp_has_no_opt() -> None:
    """When it has one, edgert can read it from GGUF files too."""
    assert "opt" not in MODEL_ARCH_NAMES.values()
    assert not any(spec.gguf for spec in config_of("opt").tensors())


@pytest.mark.parametrize("architecture", FAMILIES)
def test_feed_forward_parts(architecture: str) -> None:
    config = config_of(architecture, layers=12)
    specs = list(config.tensors())
    parts = feed_forward_parts(specs)
    assert [part.down.layer for part in parts] == list(range(config.dense_layers, 12))
    for part in parts:
        assert isinstance(part, FeedForward)
        assert [spec.role for spec in part.matrices] == [Role.GATE, Role.UP, Role.DOWN][not config.gated:]
        assert [spec and spec.role for spec in part[:-1]] == (
            [Role.GATE, Role.UP, Role.DOWN, None, None] if config.gated else
            [None, Role.UP, Role.DOWN, Role.UP_BIAS, Role.DOWN_BIAS])
        assert len({spec.layer for spec in part[:-1] if spec}) == 1
        assert part.in_groups == part.by_rows and part.deciding is None
        sparse = part._replace(sparse=True)
        assert [sparse.deciding, *sparse.in_groups] == part.by_rows
    assert {spec for part in parts for spec in part.matrices} == {spec for spec in specs if spec.role in FEED_FORWARD}
