"""Sizes and a vocabulary, no weights: what a model of a variant that nobody published is trained from."""
