"""`python -m rlhf`, the same as `chorus`."""

import sys

from rlhf.apps.cli import main

sys.exit(main())
