"""``python -m erd_cuda`` is ``erd-cuda``."""

import sys

from erd_cuda.cli import main

if __name__ == "__main__":
    sys.exit(main())
