"""Answers to an auditor: is the ledger whole, whose words are in this model, who judged, what may be said of it."""
