"""`python -m diffusers_cfld`, the same as `diffusers-cfld`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
