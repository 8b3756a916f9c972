"""The safety policy, the barrier that holds streams back, and the pipeline that serves a guarded model."""
