"""The bundle: one file, laid out for flash (docs/bundle-format.md)."""

from .header import Header, Neurons, Section, Tensor
from .reader import Bundle
from .writer import BundleWriter

__all__ = ["Bundle", "BundleWriter", "Header", "Neurons", "Section", "Tensor"]
