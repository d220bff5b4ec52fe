"""Run the command line as ``python -m session_middleware.cli``."""

import sys

from session_middleware.cli import main

if __name__ == "__main__":
    sys.exit(main())
