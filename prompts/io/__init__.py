"""The ground floor: errors, files that are there whole or not at all, the hub, the cache."""
