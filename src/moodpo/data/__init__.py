"""Data: prompts from wherever they lie."""
