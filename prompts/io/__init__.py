"""The ground floor: errors, files that are there whole or not at all, YAML, the hub, the cache."""
