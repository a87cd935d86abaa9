"""YOLO: a YAML file with classes and splits, and beside each image a text file of ``class x y width height`` in shares of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepres.data.decode import image_suffixes
from deepres.data.detection.examples import Annotated, AnnotatedBox, Problem, image_size
from deepres.errors import DeepresError

KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def yolo_file(folder: Path) -> Path | None:
    """The YAML file of the data set in ``folder``: ``data.yaml``, or the only one there."""
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    named = [path for path in found if path.stem == "data"]
    chosen = named or found
    return chosen[0] if len(chosen) == 1 else None


def read_yolo(path: Path, problems: list[Problem]) -> tuple[dict[str, list[Annotated]], tuple[str, ...]]:
    """(annotations of each split, classes). Raises ``DeepresError`` for a YAML file that names no classes or no splits."""
    settings = _settings(path)
    names = settings.get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise DeepresError(f"{path}: names no classes; give them as a list under `names`")
    classes = tuple(map(str, names))
    root = path.parent / str(settings.get("path") or "")
    if not root.is_dir():  # a path of the machine where it was made
        root = path.parent
    splits = {}
    for key, split in KEYS.items():
        places = settings.get(key)
        if places and split not in splits:
            listed = places if isinstance(places, list) else [places]
            splits[split] = [_annotated(image, file, line, classes, problems) for place in listed
                             for image, file, line in _images(root, path, str(place))]  # fmt: skip
    if not splits:
        raise DeepresError(f"{path}: names no images; give folders under `train`, `val` and `test`")
    return splits, classes


def _settings(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise DeepresError(f"{path}: reading YAML needs PyYAML, which is not installed; install deepres[detect]") from error
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeepresError(f"{path}: not YAML that can be read ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise DeepresError(f"{path}: not the description of a YOLO data set; it holds no `names` and `train`")
    return settings


def _images(root: Path, yaml_path: Path, place: str) -> list[tuple[Path, Path | None, int]]:
    """(image, the list that names it, its line there) of a folder of images or a text file of their paths."""
    # Roboflow writes "../train/images", relative to a folder that it did not export
    candidates = [root / place, root / place.removeprefix("../"), yaml_path.parent / place]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise DeepresError(f"{yaml_path}: the images {place!r} are not there; it is relative to {root}")
    if found.is_dir():
        paths = sorted(path for path in found.rglob("*") if path.suffix.lower() in image_suffixes())
        return [(path, None, 1) for path in paths]
    lines = [(line.strip(), number) for number, line in enumerate(found.read_text().splitlines(), 1) if line.strip()]
    return [(root / line.removeprefix("./"), found, number) for line, number in lines]


def _label_file(image: Path) -> Path:
    """``.../images/.../a.jpg`` -> ``.../labels/.../a.txt``: the last folder called ``images`` gives way."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _annotated(image: Path, listing: Path | None, line: int, classes: tuple[str, ...], problems: list[Problem]) -> Annotated:
    file = _label_file(image)
    try:
        width, height = image_size(image)
    except OSError:  # `checked` reports it
        return Annotated(image, listing or file, (), line)
    try:
        rows = file.read_text().splitlines()
    except FileNotFoundError:  # an image without any object
        return Annotated(image, listing or file, (), line)
    boxes = []
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            words = row.split()
            label, values = int(words[0]), [float(word) for word in words[1:]]
            if len(values) not in (4, 5):  # 5: with a confidence
                raise ValueError(f"{len(words)} numbers instead of 5")
        except ValueError as error:
            problems.append(Problem(str(file), number, "malformed", f"not `class x y width height` ({error}); it is left out"))
            continue
        x, y, wide, tall = values[:4]
        corners = ((x - wide / 2) * width, (y - tall / 2) * height, (x + wide / 2) * width, (y + tall / 2) * height)
        name = classes[label] if 0 <= label < len(classes) else f"number {label}"
        boxes.append(AnnotatedBox(name, corners, number))
    return Annotated(image, file, tuple(boxes), line)
