"""`python -m automodel_mesh` runs the `automodel-mesh` command, without its script on the PATH."""

from __future__ import annotations

import sys

from automodel_mesh.cli import main

if __name__ == "__main__":
    sys.exit(main())
