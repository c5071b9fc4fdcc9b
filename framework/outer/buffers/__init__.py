"""Files of experts, in the form that MTT and FTD write and read: ``replay_buffer_0.pt``, ``replay_buffer_1.pt``, ...

A file is a list of experts; an expert is a list of snapshots, the fresh parameters and those after each epoch; a
snapshot is a list of parameters in the module's order, as float32 tensors. Their convolutions have a bias each. Ours
before a norm of single channels have none: such a norm removes it exactly, so it is zero in what we write and left
out of what we read.

Beside its files ours keeps ``experts.json`` (``records.Experts``), and each expert by itself until its file is full.
"""
