"""Conditioning: weights as words in the system instruction."""
