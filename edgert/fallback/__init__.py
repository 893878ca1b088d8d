"""Models of families that edgert does not know: llama.cpp runs them, in a process of its own."""
