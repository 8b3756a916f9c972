"""Every number of the house: intervals and tests, text metrics, calibration. Needs numpy and scipy only."""
