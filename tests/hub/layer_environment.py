# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Lets the environment that runs this see another one's packages, behind its own:

    OVERLAY/bin/python tests/hub/layer_environment.py BASE/bin/python
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

base = subprocess.run(
    [sys.argv[1], "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
    capture_output=True,
    text=True,
    check=True,
).stdout.strip()
# Not the bare path: that folder has lines of this kind itself, which only `addsitedir` reads.
Path(sysconfig.get_path("purelib"), "base_environment.pth").write_text(f"import site; site.addsitedir({base!r})\n")
