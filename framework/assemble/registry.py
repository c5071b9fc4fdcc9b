"""What assembles each kind of run."""

import torch

from framework.assemble.bptt import assemble_bptt
from framework.assemble.common import Parts
from framework.assemble.matching import assemble_matching
from framework.config.bptt import Config
from framework.config.distilling import Distilling
from framework.config.matching import FtdConfig
from framework.run.distributed import Comm


def assemble(c: Distilling, comm: Comm, device: torch.device) -> Parts:
    """Load a run's data and build the rest.

    Raises:
        UserError: the data cannot be read, or flags do not fit it.
    """
    if isinstance(c, FtdConfig):
        return assemble_matching(c, comm, device)
    assert isinstance(c, Config), "every kind of run has its own"
    return assemble_bptt(c, comm, device)
