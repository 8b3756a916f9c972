"""From any sources to one corpus by kind of record: read, cleaned, deduplicated, decontaminated, mixed, reported."""
