"""Tests of `automodel_mesh.tracking`: torch is read and never imported, from small wheels that the tests make."""
