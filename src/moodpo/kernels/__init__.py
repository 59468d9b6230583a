"""Kernels: the same results, sooner."""
