"""Tests of the contract of `automodel_mesh.compat`, the same on every torch release."""
