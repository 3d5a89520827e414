"""OpenCL for TVM's wheels, which generate its code but bring no runtime for it."""
