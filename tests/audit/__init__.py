"""Tests of `automodel_mesh.audit`: it reads code without running it; what it knows of torch is compared with torch."""
