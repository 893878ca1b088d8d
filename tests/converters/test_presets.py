"""Which format a preset gives each matrix, by what the source has it in."""

import numpy as np
import pytest

from edgert.converters.presets import LOSSES, PRESETS, preset
from edgert.converters.source import Source
from edgert.errors import SourceError
from edgert.models.llama import Config
from edgert.models.tensors import Role, TensorSpec

LAYERS = 16
SHOWN = {Role.VALUE: "v", Role.ATTENTION_OUTPUT: "o", Role.GATE: "gate", Role.DOWN: "down", Role.HEAD: "head",
         Role.EMBEDDING: "embedding"}


class _Tensor:
    def __init__(self, spec: TensorSpec, type_name: str) -> None:
        self.type_name, self.shape = type_name, spec.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError("types alone decide")

    def grid(self, start: int, stop: int) -> None:
        raise AssertionError("types alone decide")


def formats(types: dict[str, str], name: str = "q4", layer: int = 0, columns: int = 64) -> dict[str, str]:
    """Formats of a layer's matrices, the embedding and the head, from the types that they have; "rest" of all others.
    "down" is every layer's down projection, "down 3" that of layer 3."""
    config = Config.from_hf({
        "hidden_size": columns, "intermediate_size": 64, "num_hidden_layers": LAYERS, "vocab_size": 64, "head_dim": 16,
        "num_attention_heads": columns // 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5})
    matrices = [spec for spec in config.tensors() if spec.is_matrix]

    def type_of(spec: TensorSpec) -> str:
        short = SHOWN.get(spec.role, "rest")
        return types.get(f"{short} {spec.layer}", types.get(short, types["rest"]))

    source = Source(config, {spec.name: _Tensor(spec, type_of(spec)) for spec in matrices}, "", {}, None)
    found = preset(name).formats(source)
    assert set(found) == {spec.name for spec in matrices}
    return {SHOWN[spec.role]: found[spec.name] for spec in matrices
            if spec.role in SHOWN and spec.layer in (None, layer)}


def test_a_file_of_four_bits() -> None:
    """Such as Q4_K_M: what it has in 6 stays there for v, the embedding, and some down projections."""
    mixed = {"rest": "Q4_K", "v": "Q6_K", "down": "Q6_K", "head": "Q6_K", "embedding": "Q6_K"}
    assert formats(mixed) == {"v": "q6", "o": "q4", "gate": "q4", "down": "q4", "head": "q4", "embedding": "q6"}
    assert set(formats({"rest": "Q4_1"}).values()) == {"q4"}


def test_the_last_third_of_the_finer_down_projections_stays_fine() -> None:
    """Of those in layers 0, 1, 5, 9 and 13 the last two; what is not finer never becomes so."""
    types = {"rest": "Q4_K", **{f"down {layer}": "Q6_K" for layer in (0, 1, 5, 9, 13)}}
    found = [formats(types, layer=layer)["down"] for layer in range(LAYERS)]
    assert [layer for layer, form in enumerate(found) if form == "q6"] == [9, 13]


@pytest.mark.parametrize("type_name", ["Q5_K", "Q6_K", "Q8_0"])
def test_a_file_of_more(type_name: str) -> None:
    """Of the values those that stand on no grid of 6 bits keep 8."""
    found = formats({"rest": type_name})
    assert found.pop("head") == "q4" and found.pop("v") == ("q6" if type_name == "Q6_K" else "q8")
    assert set(found.values()) == {"q6"}


@pytest.mark.parametrize("type_name", ["BF16", "Q2_K", "IQ4_XS"])
@pytest.mark.parametrize(("layer", "sensitive"), [(0, "q6"), (2, "q4"), (4, "q6"), (15, "q6")])
def test_what_is_rounded_anew(layer: int, sensitive: str, type_name: str) -> None:
    assert formats({"rest": type_name}, layer=layer) == {"v": sensitive, "o": "q4", "gate": "q4", "down": sensitive,
                                                         "head": "q4", "embedding": "q6"}


def test_what_keeps_its_grid() -> None:
    """Of few values in 4 bits, of MXFP4 in 6."""
    assert set(formats({"rest": "IQ1_S", "v": "IQ3_S", "down": "Q4_1"}).values()) == {"q4"}
    assert formats({"rest": "MXFP4"})["gate"] == "q6"


@pytest.mark.parametrize("name", ["q4", "q6"])
def test_what_is_ternary_stays_so(name: str) -> None:
    """In layers; where gate and up are not alike neither is, and where padding counts it is exactly 0."""
    found = formats({"rest": "TQ2_0", "down": "TQ1_0", "v": "Q6_K"}, name)
    assert found == {"v": "q6", "o": "ternary", "gate": "ternary", "down": "ternary", "head": name, "embedding": name}
    assert formats({"rest": "TQ2_0", "gate": "Q4_K"}, name)["gate"] == name  # and up is TQ2_0
    assert formats({"rest": "TQ2_0"}, name, columns=48)["o"] == "q8"
    assert formats({"rest": "TQ2_0"}, "q8")["gate"] == "q8"


def test_padding_that_counts_is_exactly_zero() -> None:
    found = formats({"rest": "Q4_K"}, columns=48)
    assert (found["o"], found["embedding"], found["down"]) == ("q8", "q8", "q4")


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"q4", *LOSSES}))
def test_the_others_are_one_format_throughout(name: str) -> None:
    assert set(formats({"rest": "Q4_K", "down": "Q6_K"}, name).values()) == {name}


def test_an_unknown_name() -> None:
    with pytest.raises(SourceError, match="preset 'q5' is not known; known: q4, q6, q3, q2, q8, f16, f32"):
        preset("q5")
