"""How a model learns from people: reinforcement against a reward model, and preference optimisation beside it."""
