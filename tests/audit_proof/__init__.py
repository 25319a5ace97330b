"""What `nox -s audit-downstream` runs: compares what `automodel-mesh audit` says about packages with their imports."""
