"""The command `automodel-mesh plan`: what a mesh needs, before anything runs and without torch."""
