"""``python -m mmbert_hf.cli``: the same as ``mmbert``."""

import sys

from mmbert_hf.cli import main

sys.exit(main())
