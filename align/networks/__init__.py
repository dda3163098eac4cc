"""The networks of a run: where they start, how they are stored, adapted and sharded, and how they become denoisers."""
