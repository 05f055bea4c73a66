"""`python -m submatch_nb` is the command `submatch`."""
import sys

from submatch_nb.cli import main

sys.exit(main())
