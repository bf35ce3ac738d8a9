"""`python -m cifar ...`."""

import sys

from cifar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
