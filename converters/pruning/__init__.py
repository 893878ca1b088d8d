"""Pruning: weights, neurons or layers that a model does without, chosen before it is converted."""
