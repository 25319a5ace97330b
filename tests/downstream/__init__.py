"""What `nox -s downstream` runs: small programs with other packages, on plain torch's meshes and on ours."""
