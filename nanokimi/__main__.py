"""`python -m nanokimi`."""

import sys

from nanokimi.cli import main

if __name__ == "__main__":
    sys.exit(main())
