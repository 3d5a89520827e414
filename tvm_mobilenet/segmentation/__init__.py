"""What becomes of a class for every pixel: masks, their quality, and scenes to learn it on."""
