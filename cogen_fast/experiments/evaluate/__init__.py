"""Evaluation of methods on many images: data, tasks, methods, records and tables."""
