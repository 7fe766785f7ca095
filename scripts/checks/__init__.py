"""Checks on other systems and compilers."""
