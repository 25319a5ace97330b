"""Tests of `automodel_mesh.migrating`, which needs no torch."""
