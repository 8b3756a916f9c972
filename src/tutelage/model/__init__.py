"""The model itself: decoder, heads, log-probabilities, sampling, checkpoints. Needs torch (`tutelage[train]`)."""
