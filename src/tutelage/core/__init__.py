"""What everything else is said in: records, errors, configuration, events, references, artifacts, stages."""
