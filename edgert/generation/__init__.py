"""From logits to an answer: sampling, the answer piece by piece, and whose turn it is."""
