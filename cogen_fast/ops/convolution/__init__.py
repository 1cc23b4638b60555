"""Convolutions of users' generators, differentiated with respect to their input alone."""
