"""The loop: observe, decide, commit, act. One daemon per installation, one loop per service, nothing that blocks."""
