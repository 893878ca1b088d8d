"""Embeddings of texts, with onnxruntime in a process of its own: the extra `embeddings`."""
