"""The drawn data sets: pre-training scenes and structured tasks."""

from __future__ import annotations

import numpy as np
import pytest

from toast_cli.data.base import DataSet
from toast_cli.data.demo import pretraining
from toast_cli.data.demo import scenes as demo
from toast_cli.data.demo.pretraining import DemoPretrainingOptions
from toast_cli.data.demo.shapes import PRETRAINING_KINDS, compute_relative_area
from toast_cli.data.structured import tasks
from toast_cli.data.structured.solids import DISTANCE_BIN_EDGES, draw_solids, place_solids
from toast_cli.data.structured.sprites import draw_sprite_scene
from toast_cli.data.structured.tasks import CLASS_COUNTS, StructuredOptions
from toast_cli.utils.errors import UsageError

FINE_TEST_0 = 1437712
"""Sum of the pixels of the fine task's first test scene, as version 0.1 drew it."""


def scenes(**options: object) -> DataSet:
    return pretraining.open_demo_pretraining(DemoPretrainingOptions(**options), None)  # type: ignore[arg-type]


def task(path: str, **options: object) -> DataSet:
    return tasks.open_structured(StructuredOptions(path=path, **options), None)  # type: ignore[arg-type]


class TestPretrainingScenes:
    @pytest.mark.parametrize("kind", ["several", "dominant"])
    def test_a_scene_depends_on_its_place_alone(self, kind: str) -> None:
        one, two = scenes(scenes=kind).splits["train"].load(7), scenes(scenes=kind).splits["train"].load(7)
        assert np.array_equal(np.asarray(one.image), np.asarray(two.image))
        assert np.array_equal(one.classes, two.classes)

    def test_streams_differ_from_each_other_and_from_the_fine_tasks(self) -> None:
        images = [
            np.asarray(found.splits[split].load(0).image)
            for found in (scenes(scenes="several"), scenes(scenes="dominant"), demo.open_demo(demo.DemoOptions(), None))
            for split in ("train", "val", "test")
        ]
        assert len({image.tobytes() for image in images}) == len(images)

    def test_the_number_of_things_and_of_classes_is_as_described(self) -> None:
        data = scenes(scenes="several")
        assert len(data.classes) == 1 + 14 * 10
        counts = {len(np.unique(data.splits["train"].load(i).classes)) - 1 for i in range(60)}
        assert min(counts) >= 1 and max(counts) <= 7 and len(counts) > 3

    def test_one_thing_of_a_dominant_scene_clearly_covers_the_most(self) -> None:
        split = scenes(scenes="dominant").splits["train"]
        ratios = []
        for index in range(40):
            covered = np.bincount(split.load(index).classes.ravel())[1:]
            largest = np.sort(covered[covered > 0])[::-1]
            ratios.append(largest[1] / largest[0] if len(largest) > 1 else 0.0)
        assert np.mean(np.array(ratios) < 0.8) > 0.9

    def test_outlines_are_mirror_images_of_themselves(self) -> None:
        u, v = np.meshgrid(np.linspace(-1.3, 1.3, 101), np.linspace(-1.3, 1.3, 101))
        for name, outline in PRETRAINING_KINDS.items():
            assert np.allclose(outline(u, v), outline(-u, v), atol=1e-6), name
            assert 0.4 < compute_relative_area(name) < 1, name

    def test_the_fine_task_draws_what_it_always_drew(self) -> None:
        sample = demo.open_demo(demo.DemoOptions(), None).splits["test"].load(0)
        assert int(np.asarray(sample.image).astype(int).sum()) == FINE_TEST_0


class TestStructured:
    @pytest.mark.parametrize("path", sorted(CLASS_COUNTS))
    def test_labels_go_round_and_all1000_is_the_800_and_the_200(self, path: str) -> None:
        chosen, whole = task(path), task(path, use="all1000")
        assert len(chosen.classes) == CLASS_COUNTS[path]
        assert (len(chosen.splits["train"]), len(chosen.splits["val"])) == (800, 200)
        assert len(whole.splits["train"]) == 1000 and "val" not in whole.splits
        same = (("train", 3, 3), ("val", 5, 805))
        for split, at, place in same:
            one, two = chosen.splits[split].load(at), whole.splits["train"].load(place)
            assert np.array_equal(np.asarray(one.image), np.asarray(two.image))
            assert one.label == two.label == whole.splits["train"].labels[place]

    def test_a_sprites_column_is_its_class(self) -> None:
        rng = np.random.default_rng(0)
        middles = []
        for column in range(16):
            _, mask = draw_sprite_scene(rng, 128, column, None)
            middles.append(np.nonzero(mask)[1].mean())
        assert np.all(np.diff(middles) > 0)

    def test_as_many_solids_as_the_class_says_the_nearest_in_its_bin(self) -> None:
        rng = np.random.default_rng(0)
        for count in range(3, 11):
            bin_index = count % (len(DISTANCE_BIN_EDGES) - 1)
            solids = place_solids(rng, count, bin_index, fixed=True)
            assert len(solids) == count
            nearest = min(np.hypot(solid.x, solid.depth) for solid in solids)
            assert DISTANCE_BIN_EDGES[bin_index] <= nearest <= DISTANCE_BIN_EDGES[bin_index + 1]

    def test_every_solid_can_be_seen(self) -> None:
        for seed in range(12):
            solids = place_solids(np.random.default_rng(seed), 10, 0, fixed=False)
            whole = draw_solids(np.random.default_rng(0), solids, 112).astype(int)
            for solid in solids:
                others = [other for other in solids if other is not solid]
                changed = np.abs(draw_solids(np.random.default_rng(0), others, 112) - whole).max(-1) > 8
                assert changed.sum() >= 6, (seed, solid)

    def test_an_unknown_task_names_the_nearest(self) -> None:
        with pytest.raises(UsageError, match="dsprites-locaton") as refused:
            task("dsprites-locaton")
        assert refused.value.code == "data.unknown-task"
        assert "dsprites-location" in refused.value.what_to_do
