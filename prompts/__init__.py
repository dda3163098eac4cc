"""Prompt suites, and the embedded world `shapes` with its grammar, renderer and pixel oracle."""
