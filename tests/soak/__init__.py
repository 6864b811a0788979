"""Everything at once, for minutes: does a fleet lose, leak or get anything wrong?"""
