# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The Space of ppow-hf: see the window stretch and shrink, and what it is worth."""
