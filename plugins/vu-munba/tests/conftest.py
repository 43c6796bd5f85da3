"""Where the tests of this folder find their toys."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
