"""The modules that stand in for those of NeMo AutoModel 0.4 which differ from newer ones."""
