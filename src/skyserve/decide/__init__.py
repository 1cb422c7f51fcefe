"""The verbs: pure functions from what was observed to what shall be done. No clock, no I/O, no logging, no chance."""
