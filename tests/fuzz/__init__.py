"""Random programs, and a search for one that reordering makes compute something else.

`programs` writes them; by two doors they come in, `torchscript` and `graphs` (of torch.fx).
`checking` runs what came in and reordered variants of it, `comparing` compares the runs,
`shrinking` makes a failure small, `searching` goes through many in processes of their own.
`python -m tests.fuzz --help` says how to run it.
"""
