"""Checks of arguments, files on disk and warnings: what every other part stands on."""
