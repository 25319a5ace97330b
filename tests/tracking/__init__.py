"""Tests of `automodel_mesh.tracking`: the sources of torch are read, not imported, mostly from small test wheels."""
