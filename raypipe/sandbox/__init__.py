"""Runs code that a model wrote, and says whether it solves its problem. The code is taken to be hostile.

Two processes, each shut in: the solver holds the code and gets arguments, never an expected result; the judge holds the problem
and asks the solver for values, which reach it as plain data. Only the judge is believed, so nothing that the code does to its own
process (exit, patch builtins, print a verdict, look through frames) can make it pass. The supervisor starts both, ends both, and is
the one part that runs outside. Modules that run inside use the standard library alone, and each other by relative imports.
"""
