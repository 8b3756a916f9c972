"""The same life on several processes: rank 0 leads it, the others help where a model is trained."""
