"""Pure functions on strings: one normal form, personal data, language, perturbations."""
