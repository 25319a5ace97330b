"""`python -m automodel_mesh`: the `automodel-mesh` command, also where its script is not on the path."""

from __future__ import annotations

import sys

from automodel_mesh.cli import main

if __name__ == "__main__":
    sys.exit(main())
