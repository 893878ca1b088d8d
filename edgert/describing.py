"""What a bundle is, for programs that do not load it."""

from dataclasses import dataclass
from pathlib import Path

from .bundle import Bundle
from .bundle.contents import contents
from .generation.thinking import marks_in
from .opening import template_text


@dataclass(frozen=True)
class Description:
    """parameters: how many weights. context: tokens that the model knows positions for. heads, key_value_heads: of
    attention. preset: the precision of the weights. template: of chats; None where it has none. thinks: whether that is
    one of a model that thinks before it answers. name, license: as the source gave them; empty where it did not.
    digest: the checksum of all that the bundle holds."""

    architecture: str
    parameters: int
    context: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    preset: str
    template: str | None
    thinks: bool
    name: str
    license: str
    digest: str


def describe(path: Path) -> Description:
    """Read a bundle's header, which takes milliseconds. Raises BundleError."""
    with Bundle(path) as bundle:
        header, config = bundle.header, bundle.header.config
        template, digest = template_text(bundle), bundle.digest
    return Description(
        architecture=config.architecture, parameters=sum(kind.weights for kind in contents(header) if kind.counted),
        context=config.max_position_embeddings, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, layers=config.num_hidden_layers, heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads, vocabulary=config.vocab_size,
        preset=str(header.quantization.get("preset", "")), template=template,
        thinks=marks_in(template or "", []) is not None,
        name=str(header.provenance.get("name", "")), license=str(header.provenance.get("license", "")), digest=digest)
