"""`python -m rlhf.cli`, the same as `chorus`."""

import sys

from rlhf.cli import main

sys.exit(main())
