"""What scorers and models cost."""
