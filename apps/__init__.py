"""Programs over the public API of edgert: the terminal chat."""
