"""What is compared: the words of a suite and the suites that ship.

It knows samplers, operators and metrics by their names; imported by the rest of `bench` and the command line.
"""
