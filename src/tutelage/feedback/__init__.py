"""People score, rank and tag; their words are weighed, never pooled with those of simulated or replayed people."""
