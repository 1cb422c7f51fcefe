"""Asking the clouds for today's prices. `run.refresh` is the door; nothing outside reads the other modules."""
