"""Side-by-side runs against other inference engines. No assertion on time lives in the tests."""
