"""Rewards: scorers seen through an autoencoder's decoder."""
