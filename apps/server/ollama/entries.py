"""What Ollama's clients are told of a model, whatever it is: in lists, and by /api/show."""

from typing import Any

from .names import shown


def entry(name: str, size: int | None, digest: str, details: dict[str, Any],
          capabilities: list[str]) -> dict[str, Any]:
    """A model in a list. size: bytes of its file."""
    name = shown(name)
    return {"name": name, "model": name, "size": size, "digest": digest, "details": details,
            "capabilities": capabilities}


def details(kind: str, family: str, parameters: str = "", quantization: str = "") -> dict[str, Any]:
    """kind: of its file. parameters: how many, for people."""
    return {"parent_model": "", "format": kind, "family": family, "families": [family], "parameter_size": parameters,
            "quantization_level": quantization}


def description(details: dict[str, Any], capabilities: list[str], information: dict[str, Any], *, license: str = "",
                template: str = "", parameters: str = "") -> dict[str, Any]:
    """All that /api/show says. information: by names of GGUF metadata."""
    return {"license": license, "template": template, "parameters": parameters, "details": details,
            "model_info": information, "capabilities": capabilities}
