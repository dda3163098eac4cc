"""Training: `loop` is DI* Algorithm 1, `setup` builds what it runs on, the rest is what a long run needs."""
