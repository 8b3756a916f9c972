"""Generators: whatever answers a prompt. Only `engine` and `local` need torch."""
