"""What was measured and how to repeat it: README.md has the commands."""
