"""``python -m vu_cli`` is ``vu``."""

import sys

from vu_cli.main import main

sys.exit(main())
