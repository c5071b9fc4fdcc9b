"""The distilled set as a product: its files, what reads and writes them, its pictures."""
