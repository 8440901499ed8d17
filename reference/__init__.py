"""The reference pages of the documentation, made from the code: ``python -m reference DIRECTORY`` writes them."""
