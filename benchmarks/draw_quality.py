"""Draw what `quality.py` measured: a plot of quality against evaluations, and images side by side.

python benchmarks/draw_quality.py quality --plot docs/images/quality.png --sheet docs/images/fast.jpg
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

sys.path.append(str(Path(__file__).parents[1] / "examples" / "small_model"))
from drawn_figures import DrawnFigures

SHOWN = ("DDIM, 4 steps", "DDIM, 50 steps", "published way")

LINES = {  # patterns of the settings on a line, and its colour; Heun with 2 steps would press the others together
    "DDIM": (r"DDIM, \d+ steps", "#1f77b4"),
    "DDIM, scale 1": (r"DDIM, \d+ steps, scale 1", "#17becf"),
    "DPM++ 2M": (r"DPM\+\+ 2M, \d+ steps", "#d62728"),
    "UniPC": (r"UniPC, \d+ steps", "#ff7f0e"),
    "DEIS": (r"DEIS, \d+ steps", "#bcbd22"),
    "Euler": (r"Euler, \d+ steps", "#e377c2"),
    "DPM++ 2S": (r"DPM\+\+ 2S, \d+ steps", "#aec7e8"),
    "Heun": (r"Heun, [34] steps", "#8c564b"),
    "DPM++ SDE": (r"DPM\+\+ SDE, \d+ steps", "#9467bd"),
    "LCM": (r"LCM, \d+ steps", "#2ca02c"),
    "TCD": (r"TCD, \d+ steps", "#7f7f7f"),
    "DDPM": (r"DDPM, \d+ steps|published way", "#000000"),
}
PANELS = {
    "psnr": "PSNR, dB (higher is better)",
    "ssim": "SSIM (higher is better)",
    "feature_distance": "distance of features (lower is better)",
    "recognised": "all recognised, % (higher is better)",
}
TICKS = [4, 8, 16, 40, 100, 150]
WIDTH, HEIGHT, MARGIN, DOUBLE = 430, 300, 50, 2  # pixels; drawn at twice the size for smooth lines


def draw_panel(draw: PIL.ImageDraw.ImageDraw, left: int, top: int, key: str, settings: dict[str, Any]) -> None:
    """Draw one measure against the number of evaluations, on a logarithmic axis."""
    unit = 100 if key == "recognised" else 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, (pattern, _) in LINES.items():
        found = [row for setting, row in settings.items() if re.fullmatch(pattern, setting)]
        lines[name] = sorted((row["evaluations"], unit * float(np.mean(row[key]))) for row in found)
    values = [value for line in lines.values() for _, value in line]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    font = PIL.ImageFont.load_default(size=12 * DOUBLE)

    def place(evaluations: float, value: float) -> tuple[float, float]:
        across = math.log(evaluations / TICKS[0]) / math.log(TICKS[-1] / TICKS[0])
        x = left + MARGIN + across * (WIDTH - 1.5 * MARGIN)
        return DOUBLE * x, DOUBLE * (top + HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN))

    draw.text((DOUBLE * (left + MARGIN), DOUBLE * (top + 20)), PANELS[key], "black", font)
    for tick in TICKS:
        x, y = place(tick, low)
        draw.line((x, y, x, place(tick, high)[1]), "#e0e0e0", DOUBLE)
        draw.text((x, y + 4 * DOUBLE), str(tick), "black", font, anchor="ma")
    for value in np.linspace(low, high, 5):
        x, y = place(TICKS[0], value)
        draw.line((x, y, place(TICKS[-1], value)[0], y), "#e0e0e0", DOUBLE)
        draw.text((x - 4 * DOUBLE, y), f"{value:.3g}", "black", font, anchor="rm")
    for name, line in lines.items():
        points = [place(*point) for point in line]
        draw.line(points, LINES[name][1], 2 * DOUBLE)
        for x, y in points:
            draw.ellipse((x - 3 * DOUBLE, y - 3 * DOUBLE, x + 3 * DOUBLE, y + 3 * DOUBLE), LINES[name][1])


def draw_plot(settings: dict[str, Any]) -> PIL.Image.Image:
    """Draw all measures, with a legend."""
    size = 2 * WIDTH, 2 * HEIGHT + 3 * MARGIN // 2
    canvas = PIL.Image.new("RGB", (DOUBLE * size[0], DOUBLE * size[1]), "white")
    draw, font = PIL.ImageDraw.Draw(canvas), PIL.ImageFont.load_default(size=13 * DOUBLE)
    for number, key in enumerate(PANELS):
        draw_panel(draw, WIDTH * (number % 2), HEIGHT * (number // 2), key, settings)
    for number, (name, (_, color)) in enumerate(LINES.items()):
        row, column = divmod(number, len(LINES) // 2)
        x = MARGIN + column * (2 * WIDTH - MARGIN) // (len(LINES) // 2)
        draw.text((DOUBLE * x, DOUBLE * (2 * HEIGHT + 22 * row)), name, color, font)
    draw.text(
        (DOUBLE * MARGIN, DOUBLE * (2 * HEIGHT + 44)),
        "evaluations of the U-Net per image; guidance scale 1.5 unless stated, DDPM at 150 evaluations: 2; "
        "without Heun at 2 steps",
        "black",
        font,
    )
    return canvas.resize(size, PIL.Image.Resampling.LANCZOS)


def draw_sheet(folder: Path, count: int = 8) -> PIL.Image.Image:
    """Put source, truth, and the images of some settings below each other."""
    people = DrawnFigures(count, 2, (256, 176), first_identity=6000)
    rows = []
    made = {name: np.load(folder / f"{name}.npy")[:count] for name in SHOWN}
    size = made[SHOWN[0]].shape[2], made[SHOWN[0]].shape[1]
    for name in ("source_image", "target_image"):
        images = [PIL.Image.fromarray(people[2 * number][name]) for number in range(count)]
        rows.append([np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC)) for image in images])
    rows += [list(images) for images in made.values()]
    return PIL.Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="`--output` of quality.py")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--sheet", type=Path, help="source, truth, fast, slow and published images of 8 pairs")
    args = parser.parse_args(arguments)
    if args.plot:
        settings = json.loads((args.folder / "results.json").read_text())["settings"]
        draw_plot({name: row for name, row in settings.items() if "error" not in row}).save(args.plot, optimize=True)
    if args.sheet:
        draw_sheet(args.folder).save(args.sheet, quality=90)


if __name__ == "__main__":
    main()
