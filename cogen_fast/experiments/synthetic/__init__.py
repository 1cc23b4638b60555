"""The paper's 2-D study."""
