"""Measurements and the programs that repeat them; README.md has the commands."""
