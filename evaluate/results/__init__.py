"""What was measured: records, leaderboards, summaries, comparisons, the gate, and their statistics."""
