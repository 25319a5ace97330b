"""What `nox -s drop-in` runs with nemo-automodel installed, and what tests and pages need of it without."""
