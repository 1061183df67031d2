"""Class activation maps: where in an image the evidence for a class is, and how far to trust them.

The maps as arrays; figures are in `viz`. Most are computed by the grad-cam package, behind which its traps are taken
away here.
"""

from vision_wrapper.explain.maps import CamMaps, cam, default_layer, gradcam, stages
from vision_wrapper.explain.methods import METHODS
from vision_wrapper.explain.sanity import Trust, trust

__all__ = ["METHODS", "CamMaps", "Trust", "cam", "default_layer", "gradcam", "stages", "trust"]
