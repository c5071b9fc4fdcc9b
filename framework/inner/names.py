"""Names and limits that flags show, apart from the code that needs PyTorch."""

AUGMENTATIONS = ("flip", "rotate", "scale", "crop", "color", "cutout", "mixup")
PRECISIONS = ("float32", "tf32", "bf16")
# Images differentiated at a time, at most: on CUDA, a real batch's chunk then takes about as much memory as the second
# derivatives of 100 synthetic images.
CHUNK = 256
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD, in the inner loop and in evaluation
