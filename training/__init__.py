"""How the shipped weights were made: `python -m training.router`. Nothing here is imported by the daemon."""
