"""The top floor: every command line. Nothing below imports it but the entry files `python -m ...` starts with."""
