# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompts of several kinds: how well a drafter guesses depends on what is asked. The page begins with the first."""

# Chosen of 22 by what the reference drafter's window does over 64 tokens: lists and sums make it stretch, prose makes
# it shrink. One where guessing hardly pays stays, and says so.
EXAMPLES = (
    ("Chat: pancakes", "Give me a simple recipe for pancakes: first the ingredients as a list, then numbered steps."),
    ("Chat: five tips", "List five tips for learning a new language."),
    (
        "Code: prime",
        "Write a Python function is_prime(n) that checks whether n is a prime number, and show how to call it.",
    ),
    ("Code: Fibonacci", "Write a Python function that returns the n-th Fibonacci number, with a docstring."),
    (
        "Maths: shopping",
        "Tom buys 3 books for 8 dollars each and 2 pens for 1.50 dollars each. How much does he pay in total? "
        "Show each step.",
    ),
    ("Maths: average", "What is the average of 12, 15, 18 and 23? Show your work step by step."),
    ("Hard to guess: blue sky", "Explain in a few sentences why the sky is blue."),
)
