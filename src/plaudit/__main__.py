"""`python -m plaudit`, which is also what `torchrun -m plaudit` and `accelerate launch -m plaudit` start."""

import sys

from plaudit.cli import main

if __name__ == "__main__":
    sys.exit(main())
