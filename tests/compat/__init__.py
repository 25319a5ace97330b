"""The contract of `automodel_mesh.compat`: the same files on every torch release."""
