# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The templates of the cards that training writes; installed as the package `hf_vqdit.model_cards`."""
