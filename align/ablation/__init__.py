"""Ablations: cells trained with several seeds (`sweep`), baselines beside them, and what they
answer (`claims`, `table`, `plot`).
"""
