"""Checks of arguments, files, memory and warnings, which all other parts use."""
