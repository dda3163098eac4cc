"""Prompts, what is encoded of them, and every random number of training."""
