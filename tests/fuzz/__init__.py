"""Random TorchScript programs, and a search for one that reordering makes compute something else.

`programs` writes them, `checking` compares the runs, `shrinking` makes a failure small, `searching`
goes through many in processes of their own. `python -m tests.fuzz --help` says how to run it.
"""
