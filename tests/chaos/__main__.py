"""`python -m tests.chaos --minutes 20 --seed 1`: see `campaign`."""

import sys

from tests.chaos.campaign import main

if __name__ == "__main__":
    sys.exit(main())
