"""Every setting of a training, validated together, and how settings are laid over one another."""
