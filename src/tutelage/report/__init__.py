"""Drawing: what the stages wrote as figures becomes one page that people read."""
