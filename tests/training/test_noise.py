from __future__ import annotations

import numpy as np
import pytest
import torch

from lowmem_seq.config import ModelConfig
from lowmem_seq.models import ImageClassifier, Noise, build_model
from lowmem_seq.training.noise import draw_noise
from tests.builders import tiny_config

CPU = torch.device("cpu")
SAMPLES = np.arange(2000)
EPOCHS = np.full(2000, 3)


def model_with(drop_path: float, dropout: float) -> ImageClassifier:
    config: ModelConfig = tiny_config(f"model.drop_path={drop_path}", f"model.dropout={dropout}").model
    return build_model(config, 3)


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    return model_with(0.4, 0.25)


@pytest.fixture(scope="module")
def noise(model: ImageClassifier) -> Noise:
    return draw_noise(model, 5, EPOCHS, SAMPLES, CPU)


def test_masks_have_the_shapes_that_the_model_takes(model: ImageClassifier, noise: Noise) -> None:
    assert noise.keep_path is not None
    assert noise.keep_features is not None
    assert noise.keep_path.shape == (len(model.drop_path_rates), 2000)
    assert noise.keep_features.shape == (2000, model.feature_width)
    images = torch.zeros(2, 16, 16, 3)
    model(images, draw_noise(model, 5, EPOCHS[:2], SAMPLES[:2], CPU))


def test_survivors_are_scaled_so_that_the_mean_stays_and_drop_at_their_rates(
    model: ImageClassifier, noise: Noise
) -> None:
    assert noise.keep_path is not None
    assert noise.keep_features is not None
    assert max(model.drop_path_rates) == pytest.approx(0.4)
    for rate, keep in zip(model.drop_path_rates, noise.keep_path, strict=True):
        survived = keep > 0
        assert torch.equal(keep[survived], torch.full_like(keep[survived], 1 / (1 - rate)))
        assert survived.float().mean() == pytest.approx(1 - rate, abs=0.06)  # five sigmas
    survived = noise.keep_features > 0
    assert torch.allclose(noise.keep_features[survived], torch.tensor(1 / 0.75))
    assert survived.float().mean() == pytest.approx(0.75, abs=0.01)


def test_a_sample_s_noise_is_its_own_in_whichever_micro_batch(model: ImageClassifier, noise: Noise) -> None:
    assert noise.keep_path is not None
    assert noise.keep_features is not None
    picked = np.array([1999, 7, 100, 7])
    part = draw_noise(model, 5, EPOCHS[picked], SAMPLES[picked], CPU)
    assert part.keep_path is not None
    assert part.keep_features is not None
    assert torch.equal(part.keep_path, noise.keep_path[:, picked])
    assert torch.equal(part.keep_features, noise.keep_features[picked])


@pytest.mark.parametrize(("seed", "epoch"), [(6, 3), (5, 4)])
def test_another_seed_or_epoch_draws_anew(model: ImageClassifier, noise: Noise, seed: int, epoch: int) -> None:
    other = draw_noise(model, seed, np.full(2000, epoch), SAMPLES, CPU)
    for mine, theirs in ((noise.keep_path, other.keep_path), (noise.keep_features, other.keep_features)):
        assert mine is not None
        assert theirs is not None
        assert not torch.equal(mine, theirs)


def test_branches_and_features_are_dropped_independently(noise: Noise) -> None:
    assert noise.keep_path is not None
    assert noise.keep_features is not None
    varying = [row for row in noise.keep_path if row.std() > 0]
    columns = torch.stack([*varying, *noise.keep_features.T[:4]])  # (branches + 4, 2000)
    correlations = torch.corrcoef(columns) - torch.eye(len(columns))
    assert correlations.abs().max() < 5 / 2000**0.5


def test_without_rates_there_is_nothing_to_draw() -> None:
    noise = draw_noise(model_with(0.0, 0.0), 5, EPOCHS, SAMPLES, CPU)
    assert noise.keep_path is None
    assert noise.keep_features is None
    assert draw_noise(model_with(0.1, 0.0), 5, EPOCHS, SAMPLES, CPU).keep_features is None
    assert draw_noise(model_with(0.0, 0.1), 5, EPOCHS, SAMPLES, CPU).keep_path is None
