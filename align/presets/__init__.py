"""One YAML a run; the comment it opens with says what it is."""
