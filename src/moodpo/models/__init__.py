"""Models: found, loaded, probed, saved."""
