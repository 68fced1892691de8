"""What makes it fast, mechanism by mechanism: `accelerate` is the table; beside each Python file lies its C, if any.

Each file says which function of `model` or `optim` it computes, and how. Nothing in the lesson knows of this folder.
"""
