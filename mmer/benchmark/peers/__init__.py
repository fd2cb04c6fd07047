"""What else computes our operators: PyTorch, inference engines and libraries.

Each module has functions ``prepare(problem) -> call`` that raise ``Unavailable`` with a reason.
"""
