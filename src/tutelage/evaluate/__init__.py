"""What a model is examined on, and what it shows: suites, their kinds, the stage, the watch during training."""
