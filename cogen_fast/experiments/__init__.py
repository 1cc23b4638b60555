"""Experiments as functions: the demo, checks against known posteriors, and the paper's runs."""
