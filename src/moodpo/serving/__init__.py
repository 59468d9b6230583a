"""Serving: a trained policy, asked with a weight vector."""
