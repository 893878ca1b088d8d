"""Readers of foreign formats, quantizing, layout and packing: everything `edgert convert` does."""
