"""`python -m metamusesd` is the command `metamusesd`."""

import sys

from metamusesd.cli import main

if __name__ == "__main__":
    sys.exit(main())
