"""The command line: asks, shows and waits. It decides nothing; the controller does."""
