"""Small checkpoints for the tests, and the programs that say what must come out of them."""
