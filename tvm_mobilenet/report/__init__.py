"""What was recorded, as one page to hand on: reads records only, imports neither torch nor TVM."""
