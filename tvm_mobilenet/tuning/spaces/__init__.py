"""What a search may change, one module a kernel family.

Each module has four functions: `start` computes the plan that a search begins with, `dimensions`
lists what may be changed of a plan, `normal` gives the one spelling of plans that are the same
kernel, and `fault` says why a plan cannot be used.
"""
