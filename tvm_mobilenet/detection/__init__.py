"""What a detector's outputs mean: default boxes, decoding, suppression, drawing, comparing."""
