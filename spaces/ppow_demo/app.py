# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Entry point of the Space: `python app.py`, or `ppow demo` in a checkout."""

from ppow_demo.serve import launch

if __name__ == "__main__":
    launch()
