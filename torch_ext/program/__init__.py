"""What is known of a program, and plans of it. Needs no torch."""
