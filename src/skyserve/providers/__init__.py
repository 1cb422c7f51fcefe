"""The hands: whatever can run a replica, behind one small contract (`base`)."""
