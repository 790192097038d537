import io

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image


def area(figure: Figure, colour: str) -> float:
    """Fraction of the figure's pixels that have a colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    pixels = np.asarray(Image.open(buffer).convert("RGB")) / 255.0
    return float((np.abs(pixels - np.asarray(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def texts(figure: Figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return "\n".join([*found, *(text.get_text() for legend in legends if legend for text in legend.get_texts())])
