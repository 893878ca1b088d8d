"""What a bundle is made of, by kind of tensor."""

from collections import defaultdict
from dataclasses import dataclass

from edgert.kernels.formats import FORMATS
from edgert.models.tensors import Role

from .header import CHAT_TEMPLATE, GROUP_CHECKSUMS, PREDICTORS, TOKENIZER, Header

_DETAILS = "feed-forward, details"
_DECIDING = "feed-forward, what decides"
_SHARED = "feed-forward of all tokens"
_PREDICTORS, _PREDICTED = "predictors", "feed-forward, for predictors"
_KINDS = {Role.EMBEDDING: "embedding", Role.HEAD: "output head", Role.POSITION: "positions", Role.ROUTER: "routers",
          Role.SHARED_GATE: _SHARED, Role.SHARED_UP: _SHARED, Role.SHARED_DOWN: _SHARED, Role.SHARED_WEIGHT: _SHARED,
          Role.GATE: _DECIDING,
          Role.UP: _DECIDING}
"""Of matrices; all others that are not in neuron groups are the attention's."""


@dataclass(frozen=True)
class Kind:
    """One line of the closing table: all tensors of a kind, or one plane of them.

    counted: whether these weights count in the sum over all kinds; those of the details, and of what is there once more
    for predictors, already do, with their bases.
    zeros: how many of the weights were pruned.
    """

    name: str
    formats: str
    weights: int
    bytes: int
    counted: bool = True
    zeros: int = 0


def contents(header: Header) -> list[Kind]:
    """The kinds of tensors in a bundle, largest first."""
    config = header.config
    weights: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = defaultdict(int)
    formats: dict[str, set[str]] = defaultdict(set)

    def count(kind: str, form: str, n: int, size: int) -> None:
        weights[kind] += n
        sizes[kind] += size
        formats[kind].add(form)

    base = "feed-forward, base" if any(n.details for n in header.neurons) else "feed-forward"
    neurons_a_layer = config.intermediate_size * max(config.experts, 1)
    roles = {spec.name: spec.role for spec in config.tensors()}
    for name, tensor in header.tensors.items():
        if tensor.format == "headers":
            sizes[base] += tensor.length
        elif tensor.format == "vector":
            count("norms and biases", "f32", tensor.rows, tensor.length)
        elif tensor.section == PREDICTORS:
            count(_PREDICTORS, tensor.format, tensor.rows * tensor.columns, tensor.length)
        else:
            kind = _KINDS.get(roles[name], "attention")
            if roles[name] is Role.EMBEDDING and config.tie_word_embeddings:
                kind = "embedding and output head"
            count(kind, tensor.format, tensor.rows * tensor.columns, tensor.length)
    for neurons in header.neurons:
        for kind, (_, size) in zip((base, _DETAILS), neurons.parts(), strict=False):
            sizes[kind] += neurons.groups * size
            for form, matrices in ((neurons.gate_up, 1 + config.gated - config.sparse), (neurons.down, 1)):
                if kind is base or FORMATS[form].detail_bytes:
                    count(kind, form, matrices * config.hidden_size * neurons_a_layer, 0)
    for predicted in header.predicted:
        count(_PREDICTED, predicted.down, (2 + config.gated) * config.hidden_size * neurons_a_layer,
              predicted.groups * predicted.group_bytes)
    other = sum(s.length for name, s in header.sections.items() if name in (TOKENIZER, CHAT_TEMPLATE, GROUP_CHECKSUMS))
    zeros = {base if kind == "feed-forward" else kind: count for kind, count in header.zeros.items()}
    again = (_DETAILS, _PREDICTORS, _PREDICTED)
    kinds = [Kind(k, " and ".join(sorted(formats[k])), weights[k], sizes[k], k not in again, zeros.get(k, 0))
             for k in weights]
    kinds.append(Kind("tokenizer, template, checksums", "", 0, other))
    return sorted(kinds, key=lambda kind: -kind.bytes)


def table(kinds: list[Kind], size: int) -> str:
    """Bytes and bits per weight, a line for each kind of tensor and one for the file; of a pruned model also how many
    weights are 0."""
    every = Kind("file", "", sum(k.weights for k in kinds if k.counted), size, zeros=sum(k.zeros for k in kinds))
    lines = [f"{'':32} {'format':10} {'weights':>14} {'bytes':>14} {'bits each':>10}"
             + f" {'zeros':>7}" * (every.zeros > 0)]
    for kind in [*kinds, every]:
        bits = f"{8 * kind.bytes / kind.weights:10.2f}" if kind.weights else ""
        weights = f"{kind.weights:,}" if kind.weights else ""
        zeros = f" {kind.zeros / kind.weights:7.1%}" if kind.zeros and kind.weights else ""
        lines.append(f"{kind.name:32} {kind.formats:10} {weights:>14} {kind.bytes:>14,} {bits}{zeros}".rstrip())
    return "\n".join(lines)
