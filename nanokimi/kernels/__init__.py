"""Fast implementations, mechanism by mechanism, in torch and in C. The table of all of them is `accelerate`.

Each file says which function of `model` or `optim` it replaces, and how. Those two packages import nothing from here.
"""
