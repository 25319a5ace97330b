"""Rewrites code that uses private calls of torch's meshes, so that it uses this library."""
