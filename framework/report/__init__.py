"""What a person sees of a run: metrics, plots, tables, the page."""
