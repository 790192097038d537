"""The tests' S3 server, for benches, whose path holds only their own folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from support.seaweedfs import BUCKET, s3_environment, s3_server

__all__ = ["BUCKET", "s3_environment", "s3_server"]
