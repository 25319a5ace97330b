"""Tells what a torch release changes of the private names that `compat/` relies on, from torch's sources alone.

Nothing in here imports torch: `automodel-mesh track` reads releases that are not installed. The names, and what each
release has under them, are in the ledger (`compat/ledger.toml` and `compat/ledger.json`).
"""
