"""The embedded world `shapes` made from seeds: its own stages of training, and the order they are run in."""
