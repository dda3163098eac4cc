"""Score text-to-image models under named protocols."""
