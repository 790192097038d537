"""Imported first by benches that need what tests share: they are started as files, which see their own folder only.

Processes that they start, and workers of a Ray that they start, see both too.
"""

import os
import sys
from pathlib import Path

_HERE = Path(__file__).parent

sys.path.append(str(_HERE.parent))
_before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []  # an empty entry would be any folder
os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE), str(_HERE.parent), *_before])
