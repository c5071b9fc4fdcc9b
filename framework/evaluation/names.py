"""Names that ``main.py evaluate`` offers: here, as ``--help`` needs them and should not wait for PyTorch."""

RECIPES = {
    "inner": "the set's own inner recipe: optimiser, augmentation and training lengths",
    "dc": "SGD with momentum and one step decay, with siamese augmentation, as in the DC/DSA/MTT line",
    "mtt": "dc at the learning rate that was learnt with the set, as MTT, FTD and DATM train",
    "papers": "the inner recipe at the four lengths of RaT-BPTT and AT-BPTT, 300 600 1000 3000 steps",
}
"""How networks are trained; see ``recipes.make_recipe``."""
LABELS = {
    "learnt": "the set's own",
    "hard": "one-hot, the heaviest class of each of the set's own",
    "teacher": "those of a network that was trained on the whole real set",
}
"""Labels that networks are trained with on the images of a set; see ``scoreboard``."""
STRATEGIES = {
    "run": "the recipe's own",
    "none": "without",
}
"""Augmentation of the training images; see ``scoreboard``."""
BASELINES = {
    "random": "as many real images, same recipe",
    "kcentre": "those that no real image is far from",
    "herding": "those whose mean is that of their class",
    "el2n": "those that are learnt first",
    "full": "the whole real set",
}
"""Rows beside the distilled set; see ``baselines`` and ``coresets``."""
CORESETS = ("kcentre", "herding", "el2n")
"""Of these, the images that are chosen with the help of a trained network."""
TIMM = "timm:"
"""Before the name of a model of that package, among networks that judge."""
TEACHER_STEPS = 2000
"""For which a teacher is trained, in batches of 256."""
ALL = "all"
"""Of ``--prefix``: every prefix of a boosted set's blocks."""
