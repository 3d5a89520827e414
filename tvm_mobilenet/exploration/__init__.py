"""Which MobileNet for a device and a budget: what could matter is measured, and one chosen."""
