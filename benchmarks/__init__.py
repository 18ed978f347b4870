# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The hot paths of hf_vqdit side by side with those of its peers: `make benchmarks`, or `python -m benchmarks`."""
