"""Every experiment of the paper, from training to tables and figures: ``erd-cuda reproduce``."""
