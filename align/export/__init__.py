"""What a run leaves behind: a pipeline, a LoRA, a card, a repository on the hub."""
