"""Kernels: the same results, sooner. Delete the folder and everything runs, by `models.plain`."""
