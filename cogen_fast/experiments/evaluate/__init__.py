"""Evaluation of methods on many images, and what is evaluated."""
