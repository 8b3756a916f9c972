"""Side by side with what a user would pick instead: `python -m bench list`, `python -m bench NAME`."""
