"""Looking at refined motion: a self-contained HTML page and a PNG picture."""

from erd_cuda.viewer.html import write_page
from erd_cuda.viewer.picture import write_picture
from erd_cuda.viewer.sequence import PoseSequence

__all__ = ["PoseSequence", "write_page", "write_picture"]
