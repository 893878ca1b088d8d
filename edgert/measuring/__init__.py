"""Measuring: speed, perplexity and memory, of edgert and of llama.cpp as the peer to compare with."""
