"""Pascal VOC: an XML file an image in ``Annotations``, and splits as lists of names in ``ImageSets/Main``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from deepres.data.decode import image_suffixes
from deepres.data.detection.examples import Annotated, AnnotatedBox, Problem

FOLDER, SETS, IMAGES = "Annotations", "ImageSets/Main", "JPEGImages"
VOC_SPLITS = ("train", "val", "test")


@dataclass
class Element:
    """An XML element with the line that it starts in."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, tag: str) -> Element | None:
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str) -> str:
        """The text of a child; empty where there is none."""
        found = self.child(tag)
        return found.text.strip() if found is not None else ""


def parse_xml(data: bytes) -> Element:
    """The tree of an XML document. Raises ``expat.ExpatError``, and ``ValueError`` for one that declares entities."""
    parser = expat.ParserCreate()
    root = Element("", 1)
    stack = [root]

    def start(tag: str, _: dict[str, str]) -> None:
        stack[-1].children.append(Element(tag, parser.CurrentLineNumber))
        stack.append(stack[-1].children[-1])

    def characters(text: str) -> None:
        stack[-1].text += text

    def entity(*_: object) -> None:
        raise ValueError("it declares entities, which no annotation needs")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = entity
    parser.Parse(data, True)
    return root.children[0]


def is_voc(folder: Path) -> bool:
    return (folder / FOLDER).is_dir()


def read_voc(folder: Path, problems: list[Problem]) -> dict[str, list[Annotated]]:
    """The annotations of each split; all under "" where the folder names no splits."""
    listed = {name: folder / SETS / f"{name}.txt" for name in VOC_SPLITS}
    splits: dict[str, list[Annotated]] = {}
    if not any(path.is_file() for path in listed.values()):
        both = folder / SETS / "trainval.txt"
        if not both.is_file():
            names = [(path.stem, path, 1) for path in sorted((folder / FOLDER).glob("*.xml"))]
            return {"": _read_all(folder, names, problems)}
        listed = {"train": both}
    for split, path in listed.items():
        if path.is_file():
            # Pascal's lists of one class, "dog_train.txt", have a second column; those of all classes have not
            lines = path.read_text().splitlines()
            names = [(line.split()[0], path, number) for number, line in enumerate(lines, 1) if line.strip()]
            splits[split] = _read_all(folder, names, problems)
    return splits


def _read_all(folder: Path, names: list[tuple[str, Path, int]], problems: list[Problem]) -> list[Annotated]:
    images = {path.stem: path for path in sorted((folder / IMAGES).glob("*")) if path.suffix.lower() in image_suffixes()}
    found = []
    for name, listing, line in names:
        path = folder / FOLDER / f"{name}.xml"
        image = images.get(name, folder / IMAGES / f"{name}.jpg")
        try:
            root = parse_xml(path.read_bytes())
        except FileNotFoundError:
            text = f"{name} has no annotation {path}; it is left out"
            problems.append(Problem(str(listing), line, "malformed", text))
        except (expat.ExpatError, ValueError) as error:
            at = getattr(error, "lineno", 1)
            problems.append(Problem(str(path), at, "malformed", f"not XML that can be read ({error}); the image is left out"))
        else:
            found.append(Annotated(image, path, tuple(_objects(root, path, problems)), 1, _size(root)))
    return found


def _size(root: Element) -> tuple[int, int] | None:
    size = root.child("size")
    try:
        width, height = (int(float(size.value(side))) for side in ("width", "height")) if size is not None else (0, 0)
    except ValueError:
        return None
    return (width, height) if width and height else None  # tools write 0 where they do not know


def _objects(root: Element, path: Path, problems: list[Problem]) -> list[AnnotatedBox]:
    boxes = []
    for one in root.children:
        if one.tag != "object":
            continue
        corners = one.child("bndbox")
        try:
            if corners is None:
                raise ValueError("no bndbox")
            left, top, right, bottom = (float(corners.value(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            text = f"an object without four numbers as its box ({error}); it is left out"
            problems.append(Problem(str(path), (corners or one).line, "malformed", text))
            continue
        assert corners is not None
        # Pascal counts pixels from 1 and includes the last: 1..10 covers [0, 10)
        shifted = (left - 1, top - 1, right, bottom)
        ignored = one.value("difficult") == "1"
        boxes.append(AnnotatedBox(one.value("name"), shifted, corners.line, ignored))
    return boxes
