"""The names that code written for NeMo AutoModel imports, beside those of the current generation."""
