"""Imported first by benches that need what tests share: they are started as files, which see their own folder only."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
