"""What trains and measures the spam model: the learner finds what is there, the figures are right, and made mail is always the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from bench.spam.corpus import corpus_of, rows_of
from bench.spam.learner import Rows, calibrate, fit_logistic
from bench.spam.made import make
from bench.spam.measures import auc, auc_error, f1, recall_at, threshold_at, wilson
from bench.spam.training import Recipe, cross_scores, fit, pack
from mail.spam.model import sigmoid


def test_the_learner_separates_what_can_be_separated() -> None:
    rows = Rows(np.array([0, 2, 0, 1, 2, 1]), np.ones(6, np.float32), np.array([0, 2, 3, 5, 6, 6]), 3)
    truth = np.array([True, True, False, False, False])
    weights, bias = fit_logistic(rows, truth, 1e-3, np.ones(5))
    assert ((rows.dot(weights) + bias > 0) == truth).all()
    assert weights[0] > 0 > weights[1]
    assert rows.dot(weights)[4] == 0.0


def test_calibration_makes_probabilities_of_scores() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 3, 20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * scores - 1)))
    slope, offset = calibrate(scores, truth)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert offset == pytest.approx(-1, abs=0.06)


def test_figures_are_what_they_are_called() -> None:
    scores, truth = np.array([1.0, 2, 3, 4, 5]), np.array([False, False, True, False, True])
    assert auc(scores, truth) == pytest.approx(5 / 6)
    assert auc(np.zeros(5), truth) == 0.5
    assert recall_at(scores, truth, 0.0) == 0.5
    assert recall_at(scores, truth, 0.4) == 1.0
    assert f1(scores >= 3, truth) == pytest.approx(0.8)
    assert 0 < auc_error(0.99, 100, 100) < 0.02
    low, high = wilson(2, 1000)
    assert 0 < low < 0.002 < high < 0.01
    assert wilson(0, 0) == (0.0, 1.0)
    ham = np.arange(1000.0)
    assert (ham >= threshold_at(ham, 0.002)).sum() == 2


def test_made_mail_is_always_the_same() -> None:
    digest = hashlib.sha256(b"".join(source for source, _ in make(36, 1))).hexdigest()
    assert digest == hashlib.sha256(b"".join(source for source, _ in make(36, 1))).hexdigest()
    assert make(36, 1)[5] != make(36, 2)[5]
    assert [is_spam for _, is_spam in make(4, 1)] == [False, True, False, True]


def test_a_model_is_learned_packed_and_scores_as_it_did_before() -> None:
    corpus = corpus_of(make(80, 3), "made")
    relations = Recipe({2: 1.0, 3: 1.0})
    fitted = fit(corpus, relations)
    scores = cross_scores(corpus, relations, folds=2)
    assert auc(scores, corpus.is_spam) > 0.8
    model = pack(fitted, scores, corpus.is_spam, 0.9, "test")
    before = fitted.scores(corpus)
    packed = np.array([model.logit(list(groups)) for groups in corpus.groups])
    assert np.corrcoef(before, packed)[0, 1] > 0.999
    assert sigmoid(model.slope * 0 + model.offset) == pytest.approx(model.probability(0.0))
    assert len(rows_of(corpus, 2, 20)) == 80


def test_what_a_group_says_alone_is_added_in_equal_shares() -> None:
    corpus = corpus_of(make(80, 3), "made")
    together = fit(corpus, Recipe({2: 0.5, 3: 1.0})).scores(corpus)
    alone = [fit(corpus, Recipe({group: 1.0})).scores(corpus) for group in (2, 3)]
    both = fit(corpus, Recipe({2: 0.5, 3: 1.0}, alone=2.0)).scores(corpus)
    assert both == pytest.approx(together + sum(alone), abs=1e-9)
