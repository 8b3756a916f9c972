"""tutelage raises a language model."""
