"""One module a subject: a section of the records, or None where they hold nothing of it."""
