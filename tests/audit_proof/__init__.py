"""What `nox -s audit-downstream` runs: compares what `automodel-mesh audit` says about real packages with real imports."""
