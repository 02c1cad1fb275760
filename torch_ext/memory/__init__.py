"""Peaks by the allocator, limits for tests, the memory of the process."""
