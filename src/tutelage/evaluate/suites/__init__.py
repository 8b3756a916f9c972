"""How each kind of item is scored, what gold says, and the simple baselines every figure stands beside."""
