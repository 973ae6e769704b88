"""Thumbnails of photographs: in the limited child, stored under the content's hash, against plain Pillow with `draft()` in this process."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageFilter

from bench.workbench import options, spread, table
from files.limited_child import Allowance, Children
from files.thumbnails import make_thumbnails

BOX = (256, 256)
OWNER = ["tenant"]
SIZES = ((4000, 3000), (3000, 4000), (2048, 1536), (6000, 4000))


def main() -> None:
    chosen = options("Thumbnails.", images=40, rounds=5, threads=4)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        names = photographs(root / "tenant", chosen.images)
        children = Children(chosen.threads)
        ways: dict[str, Callable[[str], None]] = {
            "plain Pillow with draft()": lambda name: plain(root, name),
            "Mailroom": lambda name: ours(root, name, children),
            "plain Pillow again": lambda name: plain(root, name),
        }
        ours(root, names[0], children)  # the child is there
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(chosen.rounds):
            for way, draw in ways.items():
                forget(root)
                rates[way].append(len(names) / taken(draw, names, chosen.threads))
        taken(ways["Mailroom"], names, chosen.threads)
        known = len(names) / taken(ways["Mailroom"], names, chosen.threads)
        resident = [memory(each.pid) for each in list(children._idle.queue)]
        children.close()
    told(rates, known, chosen.images, chosen.threads, resident)


def photographs(directory: Path, count: int) -> list[str]:
    """JPEGs that differ, as cameras make them."""
    directory.mkdir()
    random.seed(7)
    names = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        noise = Image.effect_noise((width // 8, height // 8), 90).filter(ImageFilter.GaussianBlur(1))
        bands = [noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), noise.transpose(Image.Transpose.ROTATE_180)]
        image = Image.merge("RGB", bands).resize((width, height), Image.Resampling.BICUBIC)
        image.save(directory / f"{number}.jpg", quality=random.choice((80, 88, 92)))
        names.append(f"{number}.jpg")
    return names


def plain(root: Path, name: str) -> None:
    """What a task without any care would do."""
    target = root / "tenant" / "thumbnails"
    target.mkdir(exist_ok=True)
    with Image.open(root / "tenant" / name) as image:
        image.draft("RGB", BOX)
        image.thumbnail(BOX)
        image.save(target / name, "JPEG", quality=82)


def ours(root: Path, name: str, children: Children) -> None:
    make_thumbnails(root, OWNER, name, name, sizes=[BOX], largest=10**9, draw=lambda file, sizes: children.draw(file, sizes, Allowance()))


def taken(draw: Callable[[str], None], names: Sequence[str], threads: int) -> float:
    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(draw, names))
    return time.monotonic() - began


def forget(root: Path) -> None:
    shutil.rmtree(root / "tenant" / "thumbnails", ignore_errors=True)
    os.sync()


def memory(pid: int) -> int:
    """Megabytes of a process' own and its share of what it shares (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024


def told(rates: dict[str, list[float]], known: float, images: int, threads: int, resident: Sequence[int]) -> None:
    peer = rates["plain Pillow with draft()"]
    rows = [(way, spread(found, "images/s")) for way, found in rates.items()]
    for way in ("Mailroom", "plain Pillow again"):
        by_round = [mine / theirs for mine, theirs in zip(rates[way], peer, strict=True)]
        ratio = statistics.median(rates[way]) / statistics.median(peer)
        rows.append((f"{way} / plain Pillow", f"{ratio:.2f}, by round {min(by_round):.2f} to {max(by_round):.2f}"))
    rows.append(("Mailroom, drawn before", f"{known:,.0f} images/s"))
    rows.append(("memory of a child", ", ".join(f"{each} MB" for each in resident)))
    table(f"{images} JPEGs of 3 to 24 megapixels into {BOX[0]} x {BOX[1]}, {threads} thread(s)", rows)


if __name__ == "__main__":
    main()
