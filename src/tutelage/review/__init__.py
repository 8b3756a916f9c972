"""People check what the classifiers decided, and their answers become estimates with known error."""
