"""Applications that show, and check, what a migration does to them."""
