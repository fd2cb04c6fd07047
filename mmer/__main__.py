"""``python -m mmer`` is the command ``mmer``."""

from __future__ import annotations

import sys

from mmer.cli import main

if __name__ == "__main__":
    sys.exit(main())
