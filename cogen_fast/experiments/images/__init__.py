"""The paper's image study, and its published runs."""
