"""Ollama's HTTP interface, for clients that know no other: an adapter over what the server has."""
