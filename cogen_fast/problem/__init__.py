"""The sampling problem: the generator, what is observed of its output, and the annealed density."""
