"""`python -m k2ref`: hand over to the command."""

import sys

from k2ref.cli.main import main

sys.exit(main())
