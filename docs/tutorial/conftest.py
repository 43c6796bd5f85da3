"""The plugin of the tutorial is not installed in this checkout, so its tests find it here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "vu-tutorial-plugin" / "src"))
