"""The memory budget: what it is, where each byte of it goes, and how fast that will be."""
