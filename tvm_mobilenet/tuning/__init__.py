"""Search for better plans than the computed ones, and the records of what was found."""
