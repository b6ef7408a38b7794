"""`python -m experiments` is `hope`."""

import sys

from experiments.cli import main

sys.exit(main())
