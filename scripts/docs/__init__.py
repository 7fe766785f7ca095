"""The parts of the documentation that are made by a program."""
