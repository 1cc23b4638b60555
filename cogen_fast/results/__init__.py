"""The result of a run, its diagnosis, metrics and pictures."""
