"""Experiments as functions: the demo, and the paper's runs."""
