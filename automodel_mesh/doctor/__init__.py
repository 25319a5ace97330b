"""`automodel-mesh doctor`: checks the contract for real, on local gloo ranks of the installed torch."""
