"""Boards: what a host needs to find one, hold it, and never wait for it in vain."""
