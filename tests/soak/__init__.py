"""Everything at once, for minutes: what a fleet has lost, leaked or got wrong in the end."""
