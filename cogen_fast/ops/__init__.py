"""The numerical operations: one definition (`reference`), one fast version per device."""
