"""Measures the daemon beside what it is to be compared with: ``python -m bench``.

`rows` has the one timing loop and the table; `lab` starts what is measured; `hits`, `compiles`,
`loads` and `scale` measure. What runs in a process of its own is a program: `bare`, `flood`,
`fresh` and `inside`, which read orders and answer, a line of JSON each. `demo` is ``make demo``.
"""
