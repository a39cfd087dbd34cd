"""Queue benchmark: each system behind the same small interface; see drive.py."""
