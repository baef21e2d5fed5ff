#!/usr/bin/env python
"""DeepFashion In-shop from its archive to the folders that the field uses.

    python prepare_deepfashion.py --archive img_highres --output deepfashion --annotations lists

The archive has `Img/img_highres/WOMEN/Dresses/id_00000002/02_1_front.jpg`, the lists of pairs and keypoints call that
`fashionWOMENDressesid0000000202_1front.jpg`. The lists decide about names here, and names are compared without their
underscores, since those of categories (`Blouses_Shirts`) stay and most others go.
"""

from __future__ import annotations

import argparse
import json
import logging
import lzma
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm.auto import tqdm

from diffusers_cfld.data.pair_csv import read_names, read_pair_list
from diffusers_cfld.data.pair_transform import UnreadableImageError, decode_picture, read_bytes
from diffusers_cfld.data.pairs import DEEPFASHION_PREFIXES, find_csv, load_deepfashion_pairs
from diffusers_cfld.data.skip_report import SkipReport
from diffusers_cfld.io_utils import write_file

__all__ = ["EXPECTED_COUNTS", "main", "prepare_deepfashion"]

logger = logging.getLogger(__name__)

EXPECTED_COUNTS: Mapping[str, Mapping[str, int]] = {
    "train": {"pictures": 48_674, "pairs": 101_966},
    "test": {"pictures": 4_038, "pairs": 8_570},
}
"""Of the data set as the field uses it."""

_REPORT_FILE = "prepare_deepfashion.json"
_HIGH_RESOLUTION = "img_highres"
_SUFFIXES = (".jpg", ".jpeg", ".png")
# Pictures of `img_highres` are 1101 pixels high and those of `img` 256; the largest output is 512.
_LEAST_HEIGHT = 512


def prepare_deepfashion(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    *,
    link: bool = False,
) -> dict[str, Any]:
    """Make `train_highres/` and `test_highres/` and check them.

    Each picture is decoded once. Those that are missing or damaged are named in the report and left out. Every file
    appears complete or not at all; after an interruption the same call goes on where it stopped.

    Args:
        archive: The unpacked archive or any folder in it that has `img_highres`, or `img_highres.zip`, which is also
            found in a folder and comes before small pictures there.
        output: Folder to make; may exist. Its `{split}_highres` are not looked into as an archive, and a picture there
            that this archive lacks is renamed to `.old`.
        annotations: Folder with `fasion-resize-pairs-{split}.csv` and `fasion-resize-annotation-{split}.csv` (or
            `fashion-`), for both splits or one, and perhaps `train.lst` and `test.lst`, which then say what pictures
            belong to a split (without them: all that have keypoints or are in a pair). Default: `output`.
        link: Make hard links where possible instead of copies.

    Returns:
        The report, which is also in `prepare_deepfashion.json`: for each split `pictures`, `pairs` and
        `usable_pairs` (keypoints and both pictures there), the `expected` numbers, `as_expected`; and `skipped`, the
        `state_dict` of a [`SkipReport`].

    Raises:
        OSError: The archive or a list does not exist, or a file cannot be read or written.
        ValueError: The archive is encrypted or no archive, or none of the listed pictures is in it.
    """
    target = Path(output)
    lists = target if annotations is None else Path(annotations)
    splits = _find_splits(lists)
    pictures, read = _open_archive(Path(archive), [target / f"{split}_highres" for split in EXPECTED_COUNTS])
    skipped = SkipReport()
    counts: dict[str, dict[str, Any]] = {}
    for split, wanted in splits.items():
        folder = target / f"{split}_highres"
        folder.mkdir(parents=True, exist_ok=True)
        present: set[str] = set()
        unusable: dict[str, str] = {}
        for name in tqdm(wanted, desc=split, unit="picture", disable=None):
            try:
                _place(name, folder / name, pictures, read, link)
                present.add(name)
            except UnreadableImageError as error:
                unusable[name] = error.reason
        if not present:
            raise ValueError(
                f"None of the {len(wanted)} pictures listed for '{split}' (such as '{wanted[0]}') is usable in "
                f"'{archive}', which has {len(pictures)} pictures: pass the folder or zip file of DeepFashion In-shop "
                f"that has '{_HIGH_RESOLUTION}/WOMEN/...'."
            )
        for name, reason in unusable.items():
            skipped.add(f"{split}_highres/{name}", reason + _put_aside(folder / name))
        counts[split] = {"pictures": len(present)}
        _copy_lists(lists, target, split)
        counts[split] |= _count_pairs(target, split, present, skipped)
        _warn_of_low_resolution(folder / min(present))
    report = {"archive": str(archive), **counts, "skipped": skipped.state_dict()}
    write_file(target / _REPORT_FILE, json.dumps(report, indent=1).encode() + b"\n")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; default those of the process.

    Returns:
        0 on success, 1 when an input cannot be used (one sentence on standard error says why), 130 when interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="prepare_deepfashion.py",
        description="Prepare DeepFashion In-shop from its archive: pictures under the names that the lists of pairs "
        "use, checked and counted. Can be interrupted and run again.",
    )
    parser.add_argument("--archive", required=True, metavar="DIR_OR_ZIP", help="unpacked archive, or img_highres.zip")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for train_highres/ and test_highres/")
    parser.add_argument(
        "--annotations",
        metavar="DIR",
        help="folder with fasion-resize-{pairs,annotation}-{train,test}.csv and perhaps {train,test}.lst (default: "
        "the output folder)",
    )
    parser.add_argument("--link", action="store_true", help="make hard links instead of copies where possible")
    args = parser.parse_args(argv)
    try:
        report = prepare_deepfashion(args.archive, args.output, args.annotations, link=args.link)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"prepare_deepfashion: error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("prepare_deepfashion: interrupted; run it again to go on\n")
        return 130
    sys.stdout.write(_describe(report, Path(args.output)))
    return 0


def _find_splits(lists: Path) -> dict[str, list[str]]:
    """Return the names of the pictures of each split that there are lists for."""
    if not lists.is_dir():
        raise FileNotFoundError(f"'{lists}' must be the folder of the lists of pairs and keypoints, got no folder.")
    splits = {}
    missing = None
    for split in EXPECTED_COUNTS:
        try:
            pairs, annotation = (
                find_csv(lists, DEEPFASHION_PREFIXES, kind, split) for kind in ("pairs", "annotation")
            )
        except FileNotFoundError as error:
            missing = error
            continue
        names = dict.fromkeys(name for pair in read_pair_list(pairs) for name in pair)
        picture_list = lists / f"{split}.lst"
        if picture_list.is_file():
            lines = picture_list.read_text(encoding="utf-8-sig").splitlines()
            names |= dict.fromkeys(line.strip() for line in lines if line.strip())
        else:
            names |= dict.fromkeys(read_names(annotation))
        for name in names:
            if name != os.path.basename(name):
                raise ValueError(f"The lists in '{lists}' must name files without folders, got {name!r}.")
        splits[split] = list(names)
    if missing is not None:
        if not splits:
            raise missing
        logger.warning("Only %s is prepared: %s", " and ".join(splits), missing)
    return splits


def _open_archive(archive: Path, own: Sequence[Path]) -> tuple[dict[str, Any], Callable[[Any], bytes]]:
    """Return the archive's pictures by their names without underscores, and how to read one.

    Folders that the command makes itself, `own`, are not looked into.
    """
    if archive.is_dir():
        top, own = archive.resolve(), [folder.resolve() for folder in own]
        paths = sorted(
            Path(root, name)
            for root, _, names in os.walk(top)
            for name in names
            if not any(folder == Path(root) or folder in Path(root).parents for folder in own)
        )
        # The folder's own name counts: `img_highres` itself may be given.
        found = _by_key({path: (top.name, *path.relative_to(top).parts) for path in paths})
        inside = [path for path in paths if path.name == f"{_HIGH_RESOLUTION}.zip"]
        is_of_high_resolution = any(_HIGH_RESOLUTION in path.parts for path in found.values())
        if found and (is_of_high_resolution or not inside):
            return found, lambda path: read_bytes(str(path))
        if not inside:
            raise FileNotFoundError(
                f"'{archive}' must have '{_HIGH_RESOLUTION}/WOMEN/.../*.jpg' or '{_HIGH_RESOLUTION}.zip' in it, got "
                f"{len(paths)} other files: pass the folder of DeepFashion In-shop."
            )
        archive = inside[0]
    if not archive.exists():
        raise FileNotFoundError(f"There is no archive at '{archive}': pass a folder or zip file.")
    try:
        content = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"'{archive}' is no readable zip file ({error}): download it again.") from error
    members = [member for member in content.infolist() if not member.is_dir()]
    encrypted = sum(member.flag_bits & 1 for member in members)
    if encrypted:
        raise ValueError(
            f"'{archive}' is encrypted ({encrypted} of {len(members)} files): unpack it with the password that the "
            "authors of DeepFashion give, `unzip` or `7z x`, and pass the folder."
        )

    def read(member: zipfile.ZipInfo) -> bytes:
        try:
            return content.read(member)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
            # The OSError of bz2 has no number, those of disks have.
            if getattr(error, "errno", None) is not None:
                raise
            raise UnreadableImageError(member.filename, f"is damaged in the archive ({error})") from error

    return _by_key({member: tuple(member.filename.split("/")) for member in members}), read


def _by_key(files: Mapping[Any, tuple[str, ...]]) -> dict[str, Any]:
    pictures = {
        file: parts for file, parts in files.items() if len(parts) >= 4 and parts[-1].lower().endswith(_SUFFIXES)
    }
    if any(_HIGH_RESOLUTION in parts for parts in pictures.values()):
        pictures = {file: parts for file, parts in pictures.items() if _HIGH_RESOLUTION in parts}
    found: dict[str, Any] = {}
    for file, parts in pictures.items():
        # WOMEN, Dresses, id_00000002, 02_1_front.jpg
        found.setdefault(_key("".join(parts[-4:])), file)
    return found


def _key(name: str) -> str:
    return name.removeprefix("fashion").replace("_", "").lower()


def _place(name: str, target: Path, pictures: Mapping[str, Any], read: Callable[[Any], bytes], link: bool) -> None:
    """Bring a picture to its place unless it is there."""
    source = pictures.get(_key(name))
    if source is None:
        raise UnreadableImageError(name, "is not in the archive")
    try:
        size = source.file_size if isinstance(source, zipfile.ZipInfo) else source.stat().st_size
    except FileNotFoundError as error:
        raise UnreadableImageError(name, "is a link to nowhere in the archive") from error
    if target.is_file() and target.stat().st_size == size and size:
        return
    data = read(source)
    decode_picture(data, name, reduced=True)
    if link and isinstance(source, Path):
        target.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or a file system without links
            logger.debug("Copying '%s', which cannot be linked.", source)
    write_file(target, data)


def _put_aside(picture: Path) -> str:
    """Rename what an earlier call made of another archive, which would be read as if it were of this one."""
    if not picture.is_file():
        return ""
    aside = picture.with_name(f"{picture.name}.old")
    os.replace(picture, aside)
    return f"; that of an earlier call is now '{aside.name}'"


def _copy_lists(lists: Path, target: Path, split: str) -> None:
    if lists.resolve() == target.resolve():
        return
    for kind in ("pairs", "annotation"):
        # Under one name, or lists of the other spelling from an earlier call would be read instead.
        name = f"{DEEPFASHION_PREFIXES[0]}-{kind}-{split}.csv"
        write_file(target / name, find_csv(lists, DEEPFASHION_PREFIXES, kind, split).read_bytes())
    if (lists / f"{split}.lst").is_file():
        write_file(target / f"{split}.lst", (lists / f"{split}.lst").read_bytes())


def _count_pairs(target: Path, split: str, present: set[str], skipped: SkipReport) -> dict[str, Any]:
    listed = len(read_pair_list(find_csv(target, DEEPFASHION_PREFIXES, "pairs", split)))
    pairs = load_deepfashion_pairs(target, split, report=skipped)
    usable = sum(pair.source_name in present and pair.target_name in present for pair in pairs)
    expected = EXPECTED_COUNTS[split]
    as_expected = len(present) == expected["pictures"] and usable == listed == expected["pairs"]
    return {"pairs": listed, "usable_pairs": usable, "expected": dict(expected), "as_expected": as_expected}


def _warn_of_low_resolution(picture: Path) -> None:
    with PIL.Image.open(picture) as file:
        if file.height < _LEAST_HEIGHT:
            logger.warning(
                "'%s' is only %d pixels high: pictures of '%s' are 1101. Is this the archive of small ones?",
                picture,
                file.height,
                _HIGH_RESOLUTION,
            )


def _describe(report: Mapping[str, Any], output: Path) -> str:
    lines = []
    for split in EXPECTED_COUNTS:
        if split not in report:
            continue
        entry = report[split]
        expected = entry["expected"]
        verdict = (
            "as expected"
            if entry["as_expected"]
            else f"expected are {expected['pictures']} pictures and {expected['pairs']} pairs"
        )
        lines.append(
            f"{split}: {entry['pictures']} pictures, {entry['usable_pairs']} of {entry['pairs']} pairs usable "
            f"({verdict})."
        )
    skipped = SkipReport(max_logged=0)
    skipped.load_state_dict(report["skipped"])
    lines += [skipped.summary(), f"The whole report is in '{output / _REPORT_FILE}'."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
