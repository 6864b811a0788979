"""Real modules of 9 to 69 MB, from one daemon to others through the tiers that they share."""
