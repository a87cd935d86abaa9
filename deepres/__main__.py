"""``python -m deepres``, and what ``torchrun -m deepres`` starts."""

import sys

from deepres.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
