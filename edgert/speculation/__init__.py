"""Guessing tokens that the model then checks all at once."""
