"""Names that ``main.py evaluate`` offers: here, as ``--help`` needs them and should not wait for PyTorch."""

RECIPES = {
    "inner": "the set's own inner recipe: optimiser, augmentation and training lengths",
    "dc": "SGD with momentum and one step decay, with siamese augmentation, as in the DC/DSA/MTT line",
    "mtt": "dc at the learning rate that was learnt with the set, as MTT, FTD and DATM train",
    "papers": "the inner recipe at the four lengths of RaT-BPTT and AT-BPTT, 300 600 1000 3000 steps",
}
"""How networks are trained; see ``recipes.make_recipe``."""
BASELINES = {
    "random": "as many real images, same recipe",
    "full": "the whole real set",
}
"""Rows beside the distilled set; see ``baselines``."""
ALL = "all"
"""Of ``--prefix``: every prefix of a boosted set's blocks."""
