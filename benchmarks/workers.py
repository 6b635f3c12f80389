"""Images per second out of a folder of large photographs, with 0, 1 and 2 worker processes, side by side.

    python benchmarks/workers.py
    python benchmarks/workers.py --images path/to/folder --workers 0 4 8

Every image is read, decoded, cropped, resized and normalised once an epoch. The loaders take turns, and medians over
the epochs are printed, as is what training.workers=auto chooses on this machine. On a CPU, training competes with the
workers for the cores, which this does not show.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from loading import drawn, of_toast, rate

from toast_cli.data.loaders import choose_worker_count, describe_loader_machine

SIZE = (4000, 3000)
"""Width and height of the drawn photographs, as a telephone takes them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images, one folder per class; left out: drawn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    for name, default in (("count", 48), ("batch", 8), ("epochs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    machine = describe_loader_machine(gpu=False)
    print(f"{machine.cores} cores; training.workers=auto without a GPU: {choose_worker_count(machine)}")
    with tempfile.TemporaryDirectory() as folder:
        images = given.images or drawn(Path(folder), given.count, SIZE)
        loaders = {
            workers: of_toast(images, given.batch, workers, train=True, cache=False) for workers in given.workers
        }
        found: dict[int, list[tuple[float, float]]] = {workers: [] for workers in loaders}
        for epoch in range(given.epochs + 1):
            for workers, loader in loaders.items():
                measured = rate(loader)
                if epoch:  # the first starts the workers
                    found[workers].append(measured)
    base = statistics.median(speed for speed, _ in found[given.workers[0]])
    for workers, each in found.items():
        speed, cost = (statistics.median(values) for values in zip(*each, strict=True))
        print(f"{workers} workers: {speed:6.1f} images/s, {speed / base:.2f} ×; CPU {cost:6.2f} ms an image")


if __name__ == "__main__":
    main()
