"""The segmenter in two processes."""

import json
import shutil

import pytest
from test_processes import base, train  # noqa: F401 - the fixture

RUN = "run=[classifier,rib,pseudo_masks,segmenter]"
SETTINGS = ("refine.variants=[none]", "segmenter.sources=[rib]")
TWO = ("trainer.devices=2", "trainer.strategy=ddp")


def scores_of(folder, store):
    (artefact,) = (folder / store).glob("segmenter_test_rib-*")
    return json.loads((artefact / "scores.json").read_text()), artefact


@pytest.mark.slow
def test_two_processes_give_the_same_confusion_matrix(base):  # noqa: F811
    """The same weights: those of a training in two processes differ, as its batches are summed otherwise."""
    for artefact in (base / "whole").glob("*-*"):
        shutil.copytree(artefact, base / "one" / artefact.name)
    assert train(base, "one", RUN, *SETTINGS).returncode == 0
    for artefact in (base / "one").glob("*-*"):
        if not artefact.name.startswith("segmenter_test"):
            shutil.copytree(artefact, base / "both" / artefact.name)
    two = train(base, "both", RUN, *SETTINGS, *TWO)
    assert two.returncode == 0, two.stderr
    (one, first), (both, second) = (scores_of(base, store) for store in ("one", "both"))
    assert one == both
    assert sum(map(sum, one["val"]["confusion"])) > 1000
    assert one["val"]["images"] == 4
    masks = [{p.name: p.read_bytes() for p in (folder / "val").iterdir()} for folder in (first, second)]
    assert masks[0] == masks[1]


@pytest.mark.slow
def test_two_processes_train_with_the_recipe_batch(base):  # noqa: F811
    shutil.copytree(base / "whole", base / "trained")
    extra = ("segmenter.batch_size=8", "segmenter.accumulate=2", "segmenter.average=0.9")
    run = train(base, "trained", RUN, *SETTINGS, *TWO, *extra)
    assert run.returncode == 0, run.stderr
    scores, _ = scores_of(base, "trained")
    assert 0 <= scores["val"]["miou"] <= 1
    bad = train(base, "trained", RUN, *SETTINGS, *TWO, "segmenter.batch_size=3")
    assert bad.returncode == 1
    assert "does not divide by 2 processes" in bad.stderr
