"""`python -m terminus` is `terminus`."""

import sys

from terminus.cli import main

if __name__ == "__main__":
    sys.exit(main())
