"""What happened: people's words, traffic, decisions, releases, jobs. All SQL of the house stands in this package."""
