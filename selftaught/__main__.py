"""`python -m selftaught` equals `selftaught`."""

import sys

from selftaught.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
