"""An evaluation's way, from a suite and a model to records and a row of a leaderboard."""
