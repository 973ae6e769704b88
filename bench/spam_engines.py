"""What rspamd and SpamAssassin say of labelled messages, and the rule that weighs it against the embedded check.

`python -m bench.spam_engines DIRECTORY --scores FILE` asks both engines (private ones, without a network) about a sample of
DIRECTORY/{ham,spam}/*.eml and keeps their scores in FILE; a second call goes on from there. Then the rule is fitted: the embedded
check is trained on a few messages of one half and asked about the other. On a site that it was trained on it needs no engine, and a rule
learned there would ignore them; trained on few it is about as good as on a site that it has never seen, where engines may help. Prints
the table of mail/spam/engines/fusion.py, and how each set of engines does under cross-validation.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.spam.corpus import read_corpus
from bench.spam.learner import calibrate
from bench.spam.training import fit, pack
from mail.accounts import Secret
from mail.spam.check import NOTHING_KNOWN, judge
from mail.spam.engines.engine import Envelope
from mail.spam.engines.fusion import log_odds, share
from mail.spam.engines.rspamd import Rspamd as RspamdClient
from mail.spam.engines.spamc import Spamc
from mail.spam.judging import return_path
from mail.spam.verdict import EngineScore
from tests.servers.process import server_directory
from tests.servers.rspamd import PASSWORD, Rspamd
from tests.servers.spamd import Spamd

Floats = NDArray[np.float64]
ENGINES = ("rspamd", "spamassassin")
PENALTY = 1.0
"""On the square of the weights, in messages."""
OF_EACH = 20
"""One of so many messages of a half is trained on."""


def ask(paths: list[Path], kept: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Score and required score of each message by each engine, by the message's name."""
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known: dict[str, Any] = {line["name"]: line["scores"] for line in lines}
    missing = [path for path in paths if path.name not in known]
    if missing:
        with (
            server_directory("rspamd") as one,
            server_directory("spamd") as two,
            Rspamd(one) as rspamd,
            Spamd(two) as spamd,
            kept.open("a") as file,
        ):
            clients = (RspamdClient(rspamd.url, password=Secret(PASSWORD), timeout=120), Spamc(spamd.url, timeout=120))
            for path in missing:
                source = path.read_bytes()
                said = [client.scan(source, Envelope("bench", return_path(source))) for client in clients]
                known[path.name] = {each.engine: (each.score, each.required) for each in said}
                file.write(json.dumps({"name": path.name, "scores": known[path.name]}) + "\n")
                file.flush()
    return known


def embedded(letters: list[Path], directory: Path) -> dict[str, float]:
    """The log-odds of the check for each of the messages, by one of two models, each trained on the half of all that the other is asked
    about."""
    corpus = read_corpus(directory, kinds=("ham", "spam"))
    places = np.array([zlib.crc32(letter.path.name.encode()) for letter in corpus.letters])
    wanted, answers = {path.name for path in letters}, dict[str, float]()
    for half in (0, 1):
        few = (places % 2 == half) & (places // 2 % OF_EACH == 0)
        fitted, rest = fit(corpus.where(few)), corpus.where(places % 2 != half)
        model = pack(fitted, fitted.scores(rest), rest.is_spam, 0.5, "half")
        for letter in rest.letters:
            if letter.path.name in wanted:
                answers[letter.path.name] = log_odds(judge(letter.path.read_bytes(), NOTHING_KNOWN, model).score)
    return answers


def fit_rule(offset: Floats, facts: Floats, is_spam: NDArray[np.bool_]) -> Floats:
    """Weights that are added to `offset`, none below 0, and last the bias, by Newton's method."""
    kept = list(range(facts.shape[1]))
    while True:
        rows = np.column_stack([facts[:, kept], np.ones(len(facts))])
        ridge = np.diag([PENALTY] * len(kept) + [0.0])
        point = np.zeros(rows.shape[1])
        for _ in range(50):
            chance = 1 / (1 + np.exp(-np.clip(offset + rows @ point, -30, 30)))
            curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + ridge + 1e-9 * np.eye(len(point))
            point = point - np.linalg.solve(curve, rows.T @ (chance - is_spam) + ridge @ point)
        if not kept or point[:-1].min() >= 0:
            break
        kept.pop(int(point[:-1].argmin()))
    whole = np.zeros(facts.shape[1] + 1)
    whole[[*kept, facts.shape[1]]] = point
    return whole


def auc(scores: Floats, is_spam: NDArray[np.bool_]) -> float:
    """The chance that a spam scores above a wanted message."""
    spam, ham = scores[is_spam], np.sort(scores[~is_spam])
    below, upto = np.searchsorted(ham, spam), np.searchsorted(ham, spam, side="right")
    return float((below + upto).sum() / 2 / len(spam) / len(ham))


def report(names: list[str], own: Floats, shares: Floats, is_spam: NDArray[np.bool_]) -> None:
    """The rule for each set of engines, and what five-fold cross-validation makes of it. `own` are the embedded check's log-odds, which
    are calibrated first: the shipped check's are, and what engines add is to be learned and no more."""
    slope, offset = calibrate(own, is_spam)
    own = slope * own + offset
    folds = np.array([zlib.crc32(name.encode()[::-1]) % 5 for name in names])
    sign = np.where(is_spam, 1, -1)
    print(f"embedded alone               AUC {auc(own, is_spam):.5f}  log loss {np.logaddexp(0, -sign * own).mean():.4f}")
    for count in range(1, len(ENGINES) + 1):
        for chosen in combinations(range(len(ENGINES)), count):
            facts, tried = shares[:, chosen], np.zeros(len(names))
            for fold in range(5):
                rest, now = folds != fold, folds == fold
                rule = fit_rule(own[rest], facts[rest], is_spam[rest])
                tried[now] = own[now] + facts[now] @ rule[:-1] + rule[-1]
            whole = fit_rule(own, facts, is_spam)
            engines = {ENGINES[place]: round(float(whole[index]), 2) for index, place in enumerate(chosen)}
            print(f"with {' and '.join(engines):<23} AUC {auc(tried, is_spam):.5f}  log loss {np.logaddexp(0, -sign * tried).mean():.4f}")
            print(f"    frozenset({set(engines)}): Rule({whole[-1]:.2f}, {engines}),")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds ham/*.eml and spam/*.eml")
    parser.add_argument("--scores", type=Path, required=True, help="where the engines' scores are kept")
    parser.add_argument("--ham", type=int, default=300)
    parser.add_argument("--spam", type=int, default=200)
    parser.add_argument("--only-ask", action="store_true", help="fit nothing")
    arguments = parser.parse_args()
    chance = random.Random(7)
    sample = [
        *chance.sample(sorted((arguments.directory / "ham").glob("*.eml")), arguments.ham),
        *chance.sample(sorted((arguments.directory / "spam").glob("*.eml")), arguments.spam),
    ]
    scores = ask(sample, arguments.scores)
    if arguments.only_ask:
        return
    own = embedded(sample, arguments.directory)
    shares = [[share(EngineScore(name, *scores[path.name][name], ())) for name in ENGINES] for path in sample]
    is_spam = np.array([path.parent.name == "spam" for path in sample])
    report([path.name for path in sample], np.array([own[path.name] for path in sample]), np.array(shares), is_spam)


if __name__ == "__main__":
    main()
