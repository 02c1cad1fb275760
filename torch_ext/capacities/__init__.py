"""What fits into a memory budget, before and after."""
