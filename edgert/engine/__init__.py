"""Computing: what turns tokens into logits, its buffers, sessions, and the thread that runs it."""
