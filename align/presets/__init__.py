"""One YAML file per run; the comment it opens with says what it is."""
