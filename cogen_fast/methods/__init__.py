"""From settings to an outcome: the adaptive method, the published one, and the baselines."""
