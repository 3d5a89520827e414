"""Kernels and their computed plans for OpenCL devices, made for Arm's Mali.

A work-item computes one register tile and stores it; work-items share nothing. What lies next to
each other in memory is read by neighbouring work-items, in vectors as wide as a load can be.
"""
