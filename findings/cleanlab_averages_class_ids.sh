#!/bin/sh
# cleanlab 2.9.0, segmentation.filter.find_label_issues(downsample=n): shrinks the given masks by the mean of the class
# numbers of n x n pixels, rounded. Where background (0) meets class 2, the small mask has class 1, which is not there.
# From these pixels the package estimates how often each class is mislabelled, so that what it finds depends on how the
# classes are numbered, which without downsampling it does not: below, with downsample=8, 6 % of the wrong pixels of one
# and the same data set, or 51 %, and without it 66 %. Nothing warns; the documentation speaks of less accurate results.
# Every 8th pixel of the masks with mean probabilities, given without downsample, does not depend on the numbers (63 %).
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q "cleanlab==2.9.0" "numpy==2.4.6" "scipy==1.17.1"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from cleanlab.segmentation.filter import find_label_issues
from scipy.ndimage import gaussian_filter

IMAGES, HEIGHT, WIDTH, SHRINK = 20, 96, 128, 8
random = np.random.default_rng(0)
rows, columns = np.mgrid[:HEIGHT, :WIDTH]
true = np.zeros((IMAGES, HEIGHT, WIDTH), int)
given = true.copy()
for image in range(IMAGES):  # discs of two classes; of every seventh disc the annotator gave the wrong class, or none
    for _ in range(4):
        row, column = random.integers(15, HEIGHT - 15), random.integers(15, WIDTH - 15)
        disc = np.hypot(rows - row, columns - column) < random.integers(7, 14)
        number = int(random.integers(1, 3))
        true[image, disc] = number
        given[image, disc] = random.choice([0, 3 - number]) if random.random() < 0.15 else number
wrong = given != true
# A good model: smooth probabilities of the true classes, with noise.
scores = np.stack([gaussian_filter((true == number).astype(float), (0, 2, 2)) for number in range(3)], 1)
scores = scores * 0.8 + 0.05 + random.random(scores.shape) * 0.1
scores /= scores.sum(1, keepdims=True)
blocks = scores.reshape(IMAGES, 3, HEIGHT // SHRINK, SHRINK, WIDTH // SHRINK, SHRINK).mean((3, 5))


def found(labels, probabilities, numbers, truth, **settings):
    """Share of the wrong pixels that is found, with class k called numbers[k]."""
    renamed = probabilities[:, np.argsort(numbers)]
    issues = find_label_issues(np.asarray(numbers)[labels], renamed, n_jobs=1, verbose=False, **settings)
    return float(issues[truth].mean())


few = (slice(None), slice(SHRINK // 2, None, SHRINK), slice(SHRINK // 2, None, SHRINK))
shares = {}
for numbers in ((0, 1, 2), (1, 0, 2)):
    shares[numbers] = (found(given, scores, numbers, wrong), found(given, scores, numbers, wrong, downsample=SHRINK),
                       found(given[few], blocks, numbers, wrong[few]))
    print(numbers, "full size %.3f, downsample=8 %.3f, every 8th pixel %.3f" % shares[numbers])
(full, small, picked), (full_renamed, small_renamed, picked_renamed) = shares.values()
assert full == full_renamed and picked == picked_renamed
assert min(full, picked) > 0.4
assert small < 0.25 and small_renamed > 0.4
PYTHON
