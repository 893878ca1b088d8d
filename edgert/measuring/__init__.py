"""Measuring: speed, perplexity, memory, and llama.cpp as the peer to be measured against."""
