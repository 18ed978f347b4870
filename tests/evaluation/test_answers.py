# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The page of samples: where a filled word stands."""

import pytest

from hf_vqdit.evaluation.answers import find_filled_word


@pytest.mark.parametrize(
    ("filled", "word"),
    [
        ("a red star on white", 2),
        ("a red moon on white", 2),
        ("a red, on white", 1),  # a comma is part of the word before
        ("a red moon. on white", 2),
    ],
)
def test_the_filled_word_is_found_where_it_was_hidden_or_at_the_end_of_the_word_before(filled, word):
    assert find_filled_word(filled, "a red star on white", hidden_word=2) == word
