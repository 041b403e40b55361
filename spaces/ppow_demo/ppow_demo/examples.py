# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompts of several kinds: how well a drafter guesses depends on what is asked."""

EXAMPLES = (
    ("Chat: a blue sky", "Explain in a few sentences why the sky is blue."),
    ("Chat: five tips", "List five tips for learning a new language."),
    ("Code: Fibonacci", "Write a Python function that returns the n-th Fibonacci number, with a docstring."),
    ("Code: count words", "Write a Python function that counts how often every word occurs in a text file."),
    (
        "Maths: apples",
        "A box holds 12 rows of 8 apples. I eat 5 and give away 20. How many apples are left? Think step by step.",
    ),
    ("Maths: train", "A train travels 180 km in 2.5 hours. What is its average speed? Show your work."),
    ("Story: a lighthouse", "Write the beginning of a story about a lighthouse keeper who finds a letter."),
)
