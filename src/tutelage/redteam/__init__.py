"""Attacks on a model and on the guarded system around it, an audit of bias, a test of what training text leaks."""
