"""The wheel: watch the service, judge candidates, promote or refuse, turn once more."""
