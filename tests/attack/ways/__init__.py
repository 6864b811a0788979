"""The ways to attack: each is a module with one function, run in a process of its own.

A function takes the target and the moment on the monotonic clock at which it has to be done, and
answers how often it did what, and what it was told. It ends by itself, and reaches loopback only.
"""
