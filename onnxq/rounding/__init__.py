"""How weights are rounded to integers (white paper, section 3.4)."""
