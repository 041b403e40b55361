# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
