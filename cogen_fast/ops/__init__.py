"""The numerical operations: one definition (`reference`), and one fast version for each device."""
