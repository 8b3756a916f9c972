"""How weights learn: one loop, one set of objectives, batches that know their own counts, exact resume."""
