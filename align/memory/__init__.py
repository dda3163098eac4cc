"""What a run will need of a GPU's memory, and what to change where that is too much."""
