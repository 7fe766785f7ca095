"""Damaged files, hostile replies and odd commands, made up by the thousand."""
