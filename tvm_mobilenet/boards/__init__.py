"""Boards: what is copied to one, how it is started there, and one that is emulated here."""
