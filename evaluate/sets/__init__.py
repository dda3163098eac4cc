"""Metrics of a whole set of pictures, which no single picture has."""
