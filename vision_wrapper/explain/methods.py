"""The ways to make maps, by name."""

from __future__ import annotations

from typing import NamedTuple

from vision_wrapper._lookup import Table

BATCH = 32  # images at a time: what memory is bounded by


class Method(NamedTuple):
    """A way to make maps: its name in figures, its class in the grad-cam package, and how many images at a time."""

    title: str
    package_class: str | None  # None where it is made here
    at_a_time: int = BATCH


METHODS: Table[Method] = Table(
    "method",
    {
        # The gradient's mean over a channel weighs it (Selvaraju et al. 2017, arXiv:1610.02391).
        "gradcam": Method("Grad-CAM", "GradCAM"),
        # With higher powers of the gradient, for several objects (Chattopadhay et al. 2018, arXiv:1710.11063).
        "gradcam++": Method("Grad-CAM++", "GradCAMPlusPlus"),
        # Gradient times activation, place by place (Draelos & Carin 2020, arXiv:2011.08891).
        "hirescam": Method("HiResCAM", "HiResCAM"),
        # The same with positive gradients alone; finer at early layers (Jiang et al. 2021).
        "layercam": Method("LayerCAM", "LayerCAM"),
        # Weights that keep the sum of the evidence (Fu et al. 2020, arXiv:2008.02312).
        "xgradcam": Method("XGrad-CAM", "XGradCAM"),
        # The activations' first principal component, whatever the class (Muhammad & Yeasin 2020, arXiv:2008.00299).
        "eigencam": Method("Eigen-CAM", "EigenCAM"),
        # The class's logit on the image masked by each channel; a pass a channel (Wang et al. 2020, arXiv:1910.01279).
        "scorecam": Method("Score-CAM", "ScoreCAM", at_a_time=1),
        # The fall of the logit without each channel; a pass a channel (Desai & Ramaswamy 2020).
        "ablationcam": Method("Ablation-CAM", "AblationCAM", at_a_time=1),
        # The gradients of input and biases of all layers together (Srinivas & Fleuret 2019, arXiv:1905.00780).
        "fullgrad": Method("FullGrad", None),
    },
)
"""The methods that `cam`, `trust` and `viz.plot_gradcam` take by name."""
